"""The words of the farm: what a job asks for, its states, and the prompt grammar. Pure."""
