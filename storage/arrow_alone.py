"""What pyarrow does beside its work, and a server has no use for."""

import sys
from typing import final


@final
class _NoPandas:
    """A finder of modules that knows one which is not there."""

    def find_spec(self, name: str, *_: object) -> None:
        """Answer for pandas, and leave all others to those who come later."""
        if name == "pandas":
            raise ModuleNotFoundError("this process does without pandas", name=name)


def forgo_pandas() -> None:
    """Keep pyarrow from importing pandas, which it does for the first list it makes an array of.

    Where pandas is installed, that takes half a second and 60 MB in every process; no code of ours
    needs it. To be called by a process of its own, before anything else.
    """
    sys.meta_path.insert(0, _NoPandas())
