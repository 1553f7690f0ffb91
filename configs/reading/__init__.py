"""A file to a tree of plain values, and from pydantic's errors to lines. `configs/load.py` makes recipes of it."""
