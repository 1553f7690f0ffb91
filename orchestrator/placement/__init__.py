"""Which node an actor lies on.

In come the resources of a role's actors and the nodes of a cluster. Out go a layout for machines that nobody can ask,
or placement groups for Ray.

The rule: the same words of a recipe place actors alike in both.
"""
