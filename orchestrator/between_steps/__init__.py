"""What runs between two steps, while nothing trains: swaps, measurements, the length curriculum, checkpoints.

In comes a run's progress after a step; out goes the state that the next step starts from.

The rule: what is measured after a step comes before that step's checkpoint, so that a resume neither repeats it nor
lacks it.
"""
