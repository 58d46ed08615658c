"""A real Kubernetes on this machine: a control plane and nodes in network namespaces, no container engine.

A node is a network, mount and process namespace with its own containerd, kubelet and kube-proxy. Nothing leaves the
machine: the namespaces have no way out, and the registry that the nodes pull from is one of them.
"""
