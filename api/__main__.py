"""`python -m api` is the same command as `moesaic`."""

from api.cli import main

if __name__ == "__main__":
    main()
