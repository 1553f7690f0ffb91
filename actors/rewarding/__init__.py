"""Members that reward responses, by rules (`rewards/`) and by a reward model.

In comes a payload of whole responses with their prompt rows; out goes one number a response.
"""
