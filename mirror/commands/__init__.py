"""The commands of `shoal`, one file each; loaded by name, when asked for."""
