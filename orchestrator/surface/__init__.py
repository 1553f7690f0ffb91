"""What a person sees of a run, and what commands ask of it.

In come a run's phases, steps and notices; out go progress, status, the report, the last line and the exit code.

The rule: it reads a run and passes commands on; it decides nothing of the training.
"""
