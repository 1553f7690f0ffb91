"""A researcher's tools: recipes swept, runs compared, and what another objective would have done with a run's samples.

In come recipes and run directories; out go runs, tables and JSON.

The rule: a claim about a difference comes with an interval, or with the reason why there is none.
"""
