"""Models as transformers loads them: read, probed, run in packed rows, and their weights as buckets.

In comes a model directory; out come log-probs, hidden states, or what of the directory cannot be used. `causal_lm.py`
runs a model, `probe.py` finds how it may be run, `stored.py` maps parameters to the tensors of the files.

The rule: nothing is assumed of an architecture. What it computes in packed rows is compared with each sequence alone,
and a model is packed, padded or refused by that.
"""
