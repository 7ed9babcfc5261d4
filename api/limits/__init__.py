"""Limits per caller: body size and pace, request rate, open streams, queued jobs."""
