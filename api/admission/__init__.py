"""From a submission to a queued job: validation, defaults, names, inputs, one transaction."""
