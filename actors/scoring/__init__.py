"""Members that score responses under a teacher or a reference: log-probs of given tokens, by torch or vLLM.

In come payloads of samples; out go payloads of scores, in row order. `scorer.py` is the service, `engine.py` what it
needs of an engine, `beginnings.py` and `prefix_cache.py` what is kept between the segments of a response.

The rule: what cannot be scored is rejected by uid with a reason, and never raised: a bad sample fails no batch.
"""
