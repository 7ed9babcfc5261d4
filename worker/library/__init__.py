"""The library of a gpu worker: the checkpoints and other weights that it can load, in folders and in the bucket."""
