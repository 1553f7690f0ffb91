"""Decisions: which member gets what work, and when. Opens no payload and holds no tensor.

The algorithm is in `stage.py`, the lifecycle of a run in `run.py`; docs/design.md walks through both.
"""
