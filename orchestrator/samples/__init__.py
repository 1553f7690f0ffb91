"""The way of a sample: from a prompt to a batch.

Decides which member samples which prompt, what is trained together, and what is resampled. Input: prompts, and free
slots on members. Output: batches of scored samples, as headers and references to payloads that are never opened here.

The rule: every leased prompt group is trained or passed over, with a reason, and no sample is trained twice.

    prompts -> leases -> flow, intake -> segments -> buffer -> a batch; ledger says which groups are done

What may befall a response or its group, and what it is called everywhere:

    its member died, or its payload was lost     resampled    Leases.lose
    it is too old, or would be in its batch      aged, then resampled    Buffer.expire, Intake.resample_aged
    its target has lost the thread (early_stop)  cut          Intake._cut; trained as it stands
    it cannot be trained                         rejected     Intake._reject; counted in samples_dropped
    its group kills its members                  quarantined  Intake._quarantine; its samples are rejected
    every sample of its group is rejected        passed over  Stage._pass_over
    its group's rewards are all equal            replaced     Stage._replace; passed over, in groups_replaced
"""
