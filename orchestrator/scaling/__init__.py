"""How many members each role has in a live run.

In come seconds that roles were busy or waited; out go the role that holds the run up, and the sizes that would help.

The rule: a verdict is of measured steps with the members there are now; what was measured of others is let go.
"""
