"""Does what a recipe names fit together: models, held-out sets, metrics, code? Asked by `files.py` before any actor."""
