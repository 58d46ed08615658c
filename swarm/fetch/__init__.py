"""One blob on its way in."""
