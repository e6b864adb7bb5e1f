"""What machines do: sourced devices, clusters and the seconds a kernel row takes."""
