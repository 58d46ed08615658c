"""Blobs as torrents on this node. Knows no registry and no Kubernetes."""
