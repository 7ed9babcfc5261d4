"""Registry of the gpu workers, their checkpoints and their other weights."""
