"""How the farm is run: the embedded farm on one machine, and the files for containers and GPU machines."""
