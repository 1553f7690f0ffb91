"""LoRA adapters: which tensors of a model they adapt, what they are called on the wire, and how they are merged.

`sites.py` finds the linear layers that a recipe's targets name and puts adapters into them, `wire.py` names and checks
the tensors of a version, `files.py` writes adapters and knows a base by its bytes.

The rule: W + alpha / rank B A is summed in float32, in one function (`wire.merge`), whoever merges.
"""
