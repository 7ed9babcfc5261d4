"""Owners for whom the api works without a key to tell them apart."""

# The owner of what the process does for all, and of requests that need no key.
NOBODY = ""
# The owner of all jobs of a farm without keys.
ANONYMOUS = "anonymous"
