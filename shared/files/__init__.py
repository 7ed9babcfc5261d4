"""Checks of untrusted files: checkpoints, LoRAs, embeddings, VAEs and pictures."""
