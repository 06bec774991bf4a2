"""A small life of the control database: ``python -m tests.crash.control_workload ROOT``.

Every key made, key revoked and file completed is promised in ``ROOT/acks`` as soon as it is
reported; see ``workload``.
"""

import argparse
import os
from pathlib import Path
from typing import Final

from flight_server.files import FileRegistry
from flight_server.keys import KeyStore, Scope
from storage.ports import SystemClock

LIVES: Final = 2
KEYS_A_LIFE: Final = 4
ROWS: Final = 1_000


def digest_of(number: int) -> str:
    """Return the digest of the content of a file."""
    return f"{number:064x}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    root = parser.parse_args().root
    acks = os.open(root / "acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def promise(text: str) -> None:
        os.write(acks, f"ack {text}\n".encode())

    number = 0
    for _ in range(LIVES):
        clock = SystemClock()
        with KeyStore(root / "data", clock) as keys, FileRegistry(root / "data", clock) as files:
            for _ in range(KEYS_A_LIFE):
                number += 1
                new = keys.create(f"model-{number}", scopes=[Scope.READ_HISTORY])
                promise(f"key {new.key}")
                digest = digest_of(number)
                files.register(digest, name="f", dataset="ticks", options={}, producer=digest)
                files.complete(digest, ROWS)
                promise(f"file {digest}")
                if number % 2:
                    keys.revoke(new.id)
                    promise(f"revoked {new.key}")


if __name__ == "__main__":
    main()
