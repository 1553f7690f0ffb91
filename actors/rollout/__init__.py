"""Members that write responses: the student's, a teacher's, or a dataset's own.

They take requests and yield blocks: a payload of samples, then its headers.
"""
