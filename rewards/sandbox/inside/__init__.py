"""What runs inside the sandbox, in an interpreter of its own: makes the walls, starts the program once a case, reports.

In comes a job (program, cases' inputs, limits; never an expected result), out go lines of JSON, one a case.

The rule: the standard library only, and nothing else of this repository, which is all that is visible there.
"""
