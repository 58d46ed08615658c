"""The hand-out, simulated: the tracker's own code and the agents' own rules, on simulated time and simulated links."""
