"""The live page of a run: `logratio watch RUN [RUN2]`.

In comes a run directory, of a run that goes on or has ended; out go its curves, its pipeline and its samples, as JSON
for the page in `static/`.

The rule: it reads files and asks nobody, so it needs no cluster, and a run cannot notice it. Nothing of it listens
beyond loopback, and nothing is answered without the token.
"""
