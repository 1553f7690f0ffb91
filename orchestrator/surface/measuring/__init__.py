"""Commands that measure models by the members of a run, and train nothing.

In come a recipe and a model; out go a table and JSON.

The rule: whatever is measured here is measured as a run does it, through the same calls.
"""
