"""A recipe with stages: `logratio run` and `check` of one, and its run directory.

In comes a pipeline (configs/pipeline.py); out go runs, one after the other, in directories inside of the pipeline's.

The rule: a stage is a run like any other. Where a pipeline stands follows from where its stages stand.
"""
