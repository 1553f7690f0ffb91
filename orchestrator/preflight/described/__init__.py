"""Lays a recipe out on a cluster that is only described, so that a GPU recipe is checked on a laptop.

In come a recipe and a cluster spec: nodes, and the models and prompts that are not on this machine. Out go the
comparisons of preflight, and those of GPU memory, which no live cluster tells.

The rule: what cannot be read here is described by its user, or refused; what was not looked at is said.
"""
