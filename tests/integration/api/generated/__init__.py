"""Programs on generated clients."""
