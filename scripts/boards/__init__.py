"""Grafana dashboards and alert rules, written by code: `python -m scripts.boards` writes
deploy/grafana/dashboards/*.json and deploy/prometheus/rules.yml.

Expressions name metrics through `actors/metrics.py`, which refuses what nobody exports; a panel's description is made
of the meanings there. docs/dashboards.md says what each board answers.
"""
