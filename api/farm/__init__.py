"""The load of the farm: queue, throughput and the number of workers it wants."""
