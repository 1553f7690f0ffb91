"""Members that score responses under a teacher or a reference: log-probs of given tokens, by torch or vLLM.

They take payloads of samples and return payloads of scores, in row order. `scorer.py` is the service, `engine.py` the
interface of its engines; `beginnings.py` and `prefix_cache.py` hold the state between the segments of a response.

The rule: a sample that cannot be scored is rejected by uid with a reason. It never fails its batch.
"""
