"""Before any actor starts: do the files fit together, and can the machines hold the run?

`files.py` asks `inputs/` about models and prompts; `capacity.py` compares the run with the machines of `survey.py`, or
with a cluster that is only described (`described/`).

In come a recipe, its files and the machines; out go the inputs of a run, or a line with key, value and remedy.

The rule: a fault of a user's files or machines is found here, not by an actor later.
"""
