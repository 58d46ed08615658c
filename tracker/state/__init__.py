"""What a tracker knows of the cluster. No I/O."""
