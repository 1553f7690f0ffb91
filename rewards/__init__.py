"""Reward rules: pure functions of a response's text, its length and its prompt row."""
