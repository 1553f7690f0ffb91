"""A corpus of Python functions with an injected fault each, for the minimal code-editing pipeline.

In: a number of rows and a seed. Out: rows with a prompt, the faulty code, its fix, and tests that the fix passes and
the faulty code fails. Rule: the same numbers give the same rows.
"""
