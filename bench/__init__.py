"""Measures the running service beside floors taken in the same run; see ``python -m bench -h``."""
