"""The HTTP front end of a node: registry and streaming requests in, verified bytes out."""
