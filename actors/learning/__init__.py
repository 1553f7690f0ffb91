"""The learner's ranks: they take their share of a batch, step, and give out the new weights."""
