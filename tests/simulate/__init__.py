"""Discrete-event simulation of a farm's day, with the farm's own scaling, forecast and claim order. No engine runs."""
