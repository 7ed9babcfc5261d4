"""The durable job: its life cycle, its turn in the queue, its rescue and its removal."""
