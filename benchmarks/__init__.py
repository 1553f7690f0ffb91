"""Measurements that anyone can repeat: each module is one, and its docstring says what it measures."""
