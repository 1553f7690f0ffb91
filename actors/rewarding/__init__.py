"""Members that reward responses, by rules (`rewards/`) and by a reward model.

They take a payload of whole responses with their prompt rows, and return one number for each response.
"""
