"""Files of unknown origin: checkpoints, other weights, pictures."""
