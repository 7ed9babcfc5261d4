"""Long polls and event streams, on one Redis subscription per process and with coalesced row reads."""
