"""Before any actor starts: do the files fit together, and can the machines hold the run?

In come a recipe and what can be read of files and machines; out go the inputs of a run, or one line that names the key,
the value and the remedy.

The rule: what a user's file or machine can cause is found here, and not by an actor later.
"""
