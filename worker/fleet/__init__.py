"""The fleet as a gpu worker sees it: who is there, what waits, how much each checkpoint is wanted, and what to turn to."""
