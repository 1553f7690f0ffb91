"""`logratio export`: what a run trained, as a directory for Hugging Face's libraries, with a model card.

In comes a run directory; out goes a directory with weights, tokenizer, generation config and README.md.

The rule: it reads a run and starts nothing. The card says what the run's files say, and names no path of this machine.
"""
