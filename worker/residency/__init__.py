"""Residency of checkpoints: their weights by tiers, and which are in the pipelines."""
