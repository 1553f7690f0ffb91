"""Adapters inside a learner rank, and the scores of the base that lies beneath them."""
