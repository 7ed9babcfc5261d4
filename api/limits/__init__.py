"""Bounds on what one caller may hold: bodies, rates, streams, queued jobs."""
