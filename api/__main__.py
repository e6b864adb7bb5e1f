"""`python -m api` is the same command as `moesaic`."""

from api.cli import main

main()
