"""Members that score responses under a teacher or a reference: log-probs of given tokens, by torch or vLLM."""
