"""Derives the sizes that a recipe leaves to memory (`auto`): responses at a time, tokens of a forward pass.

In come a recipe, the sizes of its models, and the memory of one GPU of each role. Out goes the recipe with numbers, and
a line for each that says how it came about.

The rule: a number that a user wrote is never looked at.
"""
