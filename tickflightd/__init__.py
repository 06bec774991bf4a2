"""The composition root: settings, the command line, the supervisor and each role's main function.

Everything that reads the environment, starts a process or ends one lives here; the packages below
take plain values and know nothing of it. ``tickflightd.cli.main`` is the way in.
"""
