"""Whole runs in one process: the project's own orchestrator, learner, scorers and rewards; a rollout in plain torch.

`serve` carries out commands; `rollout` samples; `taught` makes tiny models that can do something, `voices` one
for the ready pipelines to begin with.
"""
