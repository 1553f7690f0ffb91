"""What travels between roles: payloads and headers (`records.py`), and the learner's jobs (`jobs.py`).

The rule: only `records.py` knows column names.
"""
