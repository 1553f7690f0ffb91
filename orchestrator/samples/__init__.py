"""The way of a sample: from a prompt to a batch.

Decides which member samples which prompt, what is trained together, and what is resampled. Input: prompts, and free
slots on members. Output: batches of scored samples, as headers and references to payloads that are never opened here.

The rule: every leased prompt group is trained, rejected with a reason, or leased again, and no sample is trained twice.

    prompts -> leases -> flow, intake -> segments -> buffer -> a batch; ledger says what is behind the run
"""
