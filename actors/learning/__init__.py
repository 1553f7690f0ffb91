"""One rank of the learner: the student under DeepSpeed.

In come a share of a batch and the payloads that hold it; out go metrics, checkpoints and weight buckets. `learner.py`
has the methods, `batch.py` makes tensors of payloads, `student.py` is the module that is trained.

The rule: all ranks take the same decisions, or a collective hangs. Whether loss, gradient and weights are finite is
decided together (`finite.py`), and a write that fails is raised only once every rank is through (`late_faults.py`).
"""
