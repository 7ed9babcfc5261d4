"""Factories, real servers and devices that tests share."""
