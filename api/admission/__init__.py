"""From a submission to a queued job: validation, defaults, name lookup, input pictures, one transaction."""
