"""Before any actor starts: do the files fit together, and can the machines hold the run?

In come a recipe, its files and the machines; out go the inputs of a run, or a line with key, value and remedy.

The rule: a fault of a user's files or machines is found here, not by an actor later.
"""
