"""The members: thin shells around engines, and what they share. They know neither Ray nor the orchestrator.

A role (rollout, scoring, rewarding, learning) knows no other role. What they send each other is in `wire`.
"""
