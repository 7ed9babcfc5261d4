"""The courier: upkeep of jobs and delivery of webhooks. No torch."""
