"""The recipe: its keys (`schema.py`, `roles/`, `objective.py`), files and overrides (`load.py`, `reading/`), what it
names (`names/`), and what its values mean together (`rules/`)."""
