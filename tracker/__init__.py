"""The in-cluster tracker: announces, boards, claims, membership, status page."""
