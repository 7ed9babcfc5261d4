"""Limits per caller: threads, memory, body size and pace, request rate, open streams, queued jobs."""
