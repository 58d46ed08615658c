"""What agents and trackers say to each other, and the board that answers. Pure."""
