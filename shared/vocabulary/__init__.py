"""Parameters and states of jobs, samplers, the prompt grammar and infotext: pure values and functions, no I/O."""
