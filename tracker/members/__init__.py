"""Who the members of the cluster are."""
