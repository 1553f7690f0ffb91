"""What a run's weights are worth: held-out prompts, sampled and scored the same way every time.

In come prompts, the pools, and rewards of responses; out go means, Pass@k and Avg@k with their intervals. Its rule: two
evaluations of the same weights are equal, so prompts, seeds and resamples follow from the recipe alone.
"""
