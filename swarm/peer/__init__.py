"""libtorrent, and everything that is said to other agents."""
