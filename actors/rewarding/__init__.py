"""Members that reward responses: rules, and a reward model."""
