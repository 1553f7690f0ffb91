"""From a learner's step to the members that serve its weights.

Decides which version each member has, when it pulls the next, and whose turn a shared GPU is. In come steps of the
learner; out go versions that rollouts and scored models serve.

The rule: a version number names one set of weights for ever, and a step's samples and scores come from the weights of
that step only.
"""
