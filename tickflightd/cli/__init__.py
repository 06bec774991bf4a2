"""The command line of the service, for whoever runs it; models and notebooks have ``tickflight``.

Imports that cost time wait until their command runs: help must be there at once.
"""

from tickflightd.cli.root import main

__all__ = ["main"]
