"""Weights that go from the learner's GPU to a rollout's without the object store, by vLLM's own transfer engine.

`shared.py` is one node (CUDA IPC): a copy on the learner's GPU that members read. `nccl.py` is several (NCCL): rank 0
and the members are one group, and meet for each version. In comes the student, tensor by tensor; out go calls to vLLM.

The rule: no end waits for the other without a limit, and nothing that crosses is a pickle.
"""
