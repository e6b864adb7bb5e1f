"""A real network without GPUs: processes in network namespaces, a switch between them."""
