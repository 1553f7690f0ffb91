"""The recipe: its keys (`schema.py`, `roles.py`, `objective.py`), files and overrides (`load.py`), and what its values
mean together (`rules/`)."""
