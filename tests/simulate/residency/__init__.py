"""Simulation of a fleet that shares hundreds of checkpoints, with the farm's own homes, choice and fair order. No engine runs."""
