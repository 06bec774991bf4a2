"""``python -m tickflightd``: the same as the console script, and how roles are started."""

from tickflightd.cli import main

if __name__ == "__main__":
    main()
