"""containerd's files, with and without this agent."""
