"""Rewards of a response, by its text, its length and its prompt's row. A kind a file, one table of them (`table.py`).

In: the rules of a recipe and responses. Out: for each response the weighted sum, the value of each component, or why it
has none. Rule: code of the user's, and what might not end, runs in a process apart (`apart/`) under a deadline.
"""
