"""What travels between roles: payloads and headers (`records.py`), and what the learner is asked to do (`jobs.py`).

The rule: column names are known in `records.py` and nowhere else.
"""
