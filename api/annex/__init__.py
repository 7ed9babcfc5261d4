"""The annex: a process beside the api, of lower priority, for work that takes the processor."""
