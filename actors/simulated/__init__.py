"""Members of every role that sleep instead of computing: same calls, same errors, known numbers. For tests of what
decides.
"""
