"""Is it true in motion: the SimPy half."""
