"""Members that write responses: the student's, a teacher's, or a dataset's own.

In come requests and weight versions; out go blocks: a payload of samples, then its headers. `writer.py` is what all
three have in common, `rollout.py` runs vLLM.

The rule: every token carries the log-prob and the version that it was sampled with.
"""
