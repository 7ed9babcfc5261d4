"""The embedded farm: the real engines and the farm's own processes on one machine, started and kept by one supervisor."""
