"""Models as transformers loads them: how each can be run, its log-probs, and its weights on their way."""
