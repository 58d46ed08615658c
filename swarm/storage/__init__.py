"""Bytes on this node's disk."""
