"""Load of the farm: queue statistics, throughput, metrics, and how many workers are wanted."""
