"""Which to choose."""
