"""Adapter for clients of AUTOMATIC1111: `/sdapi/v1`, `/internal` and Agent Scheduler. Its field names stay in this package."""
