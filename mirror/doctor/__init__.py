"""What is wrong on a node, and the command that mends it: the checks behind `shoal doctor`."""
