"""The durable job: life cycle, fair queue, rescue, outbox and removal.

Only these modules write the tables of jobs:

    jobs          lifecycle; submits and claims (each a statement); fair_queue (`parked`); rescue (expiry, `snapshot_attempt`);
                  removal (`is_swept`, and deletes)
    images        lifecycle; a removed job's go with it (ON DELETE CASCADE)
    shares        submits; fair_queue; and so owner_shares
    clocks        claims; submits adds them; and so priority_clocks
    events        outbox, with the deliveries; purging them, outbox deletes unused webhook_endpoints
    batches       batches
    promises      idempotency
    uploads       uploads
    inputs        inputs
    removed_jobs  removal
"""
