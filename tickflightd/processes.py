"""What every process of the service does first: know its own packages, and die with its parent."""

import ctypes
import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import Final

from tickflightd.errors import ConfigurationError

OUR_PACKAGES: Final = ("flight_server", "ingest", "storage", "webui")
_PR_SET_PDEATHSIG: Final = 1  # from <linux/prctl.h>


def require_own_packages() -> None:
    """Refuse to run with another distribution's ``storage`` (or ``ingest``…) in place of ours.

    The names are generic: with an editable install, any distribution that ships one of them wins
    over ours. They belong beside this package; nothing is imported to find out.

    Raises:
        ConfigurationError: One of them comes from elsewhere, or is missing.
    """
    home = Path(__file__).resolve().parent.parent
    for name in OUR_PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or Path(spec.origin).resolve().parent.parent != home:
            found = "nowhere" if spec is None else spec.origin or "a directory without __init__.py"
            raise ConfigurationError(
                f"the package {name} was found in {found}, not below {home}: another distribution"
                " ships the same name; install tickflight-server in an environment of its own"
            )


def die_with(parent: int) -> None:
    """Have the kernel kill this process at once when its parent is gone, however that happens.

    A role must survive ``kill -9`` anyway (what it has acknowledged is on disk), so the abrupt
    signal costs nothing and needs no cooperation from a process that may be hanging. The kernel
    watches the parent's *thread*: start roles from its main thread.

    Args:
        parent: Process id of the supervisor. It may have died before we got here, which the kernel
            would not tell us any more; then some other process is our parent already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(os.EX_UNAVAILABLE)


def role_command(*words: str) -> tuple[str, ...]:
    """Return the command line of a role's process, supervised by this one."""
    # -P: a directory named ``storage`` where we were started must not become the package.
    interpreter = (sys.executable, "-P", "-m", "tickflightd")
    return (*interpreter, *words, "--supervisor", str(os.getpid()))
