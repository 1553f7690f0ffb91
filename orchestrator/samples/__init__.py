"""The way of a sample: from a prompt to a batch.

Decides who is asked for which prompt, what is trained together, and what is resampled. In come prompts and room on
members; out go batches of scored samples, as headers and references to payloads that are never opened here.

The rule: a prompt group that was leased is trained, rejected by name, or leased again. Nothing is forgotten, and
nothing is trained twice.

    prompts -> dispatch -> flow, intake -> segments -> buffer -> a batch; ledger says what is behind the run
"""
