"""Who gets a run's numbers beside its own files: Prometheus, TensorBoard, and the trackers that a recipe names.

In come steps, evaluations and statuses; out go the calls of each tracker's own library, from one thread of their own.

The rule: a tracker that fails is dropped with a notice, and the run goes on.
"""
