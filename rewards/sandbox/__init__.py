"""Runs programs that nobody trusts, in isolation, and says how each case ended and what it printed or returned.

In come a program, the inputs of its cases and limits; out come endings, one a case.

The rule: an expected result never goes in. So nothing that the program does in there can make a wrong answer right.
"""
