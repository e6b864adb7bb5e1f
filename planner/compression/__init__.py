"""Compression as transforms on a table of experts: four costs, kept apart, and known quality."""
