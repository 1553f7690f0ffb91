"""One rank of the learner: the student under DeepSpeed.

It takes a share of a batch and its payloads, and returns metrics, checkpoints and weight buckets. `learner.py`
has the methods, `batch.py` makes tensors of payloads, `student.py` is the trained module.

The rule: all ranks take the same decisions, or a collective hangs. Whether loss, gradient and weights are finite is
decided together (`ranks/finite.py`), and a failed write raises only after every rank is done (`ranks/late_faults.py`).
"""
