"""Models as transformers loads them: read, probed, run in packed rows, and their weights as buckets.

They take a model directory and return log-probs, hidden states, or the reason why it cannot be used. `causal_lm.py`
runs a model, `probing/` finds how it may be run, `stored.py` maps parameters to the tensors of the files.

The rule: nothing is assumed of an architecture. Its outputs in packed rows are compared with each sequence alone, and
the result decides whether a model is packed, padded or refused.
"""
