"""What decides: who is asked for what, and when. It opens no payload and holds no tensor.

The algorithm is in `stage.py`, the lifecycle of a run in `run.py`; docs/design.md walks through both.
"""
