"""The trackers as an agent sees them."""
