"""The ways in: shell and REST. They translate; they never decide."""
