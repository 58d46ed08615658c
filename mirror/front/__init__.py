"""What clients ask: the registry API and streaming reads."""
