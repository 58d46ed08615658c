"""The fault bench: a list of faults, each done to a real cluster on this machine, and what was seen of it."""
