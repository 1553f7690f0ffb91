"""A process beside the reward worker, for rewards that may raise, hang, or end their process.

In: rules, then one rule's number and responses at a time. Out: values as JSON. Rule: the worker waits for at most the
rule's seconds; then it kills the process with all that it started, and starts another.
"""
