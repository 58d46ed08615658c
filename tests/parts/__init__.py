"""The real parts that tests are made of: registries, proxies, containerd, whole clusters, each in own processes."""
