"""Who is who, by key: certificates of agents and trackers, and the TLS contexts made of them."""
