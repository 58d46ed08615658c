"""The window lane: ranges of verified pieces between agents, over HTTP/1.1 and past the event loop."""
