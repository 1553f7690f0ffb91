"""Carriers from the learner's GPU to the rollouts': which members take part in a transfer, and what becomes of others.

`carrier_of` in `choice.py` reads `rollout.carrier`. In come pulls of single members; out go calls to both ends of a
transfer (`actors/transfer`).

The rule: a member that fails costs nobody but those that were in the same transfer, and those are replaced.
"""
