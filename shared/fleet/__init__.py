"""The gpu workers and what they serve."""
