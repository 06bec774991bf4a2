"""Everything this package refuses or fails at, and the exit code each answers with.

TickflightdError             base; exit code 1
├── ConfigurationError       exit code 2: a setting, directory or address can't be used as it is
│   ├── AddressInUseError    something else listens where the service should
│   └── AlreadyRunningError  another service owns the data directory
├── RoleFailedError          exit code 1: a role never came up
├── ServiceError             exit code 1: the running service can't be reached or refused the work
└── ImportFailedError        exit code 1: a file can't be imported as it is
"""

from typing import ClassVar, Final, final

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2


class TickflightdError(Exception):
    """Base of all errors of this package; its text is a sentence for whoever typed the command."""

    exit_code: ClassVar[int] = EXIT_FAILED


class ConfigurationError(TickflightdError):
    """A setting, directory or address can't be used as it is; nothing was started or changed."""

    exit_code = EXIT_USAGE


@final
class AddressInUseError(ConfigurationError):
    """Something else listens on the address the service was told to use."""


@final
class AlreadyRunningError(ConfigurationError):
    """Another service owns the data directory."""


@final
class RoleFailedError(TickflightdError):
    """A role never came up."""


@final
class ServiceError(TickflightdError):
    """The running service can't be reached, or refused the work."""


@final
class ImportFailedError(TickflightdError):
    """A file can't be imported as it is."""
