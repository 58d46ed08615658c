"""Windows of a blob from a Source."""
