"""Which symbols have real rows in the lake, so that synthetic ones stay out of it."""

from collections.abc import Mapping
from typing import Final

from storage.lake.table import LakeTable
from storage.schemas import DATASETS

SYNTHETIC_SOURCES: Final = frozenset({"demo"})
"""Sources all of whose rows carry the flag SYNTHETIC."""


def real_symbols(tables: Mapping[str, LakeTable]) -> dict[str, tuple[str, ...]]:
    """Return the symbols with real rows, for each dataset that may have synthetic ones.

    A symbol that is real in one dataset is so in all: its synthetic quotes would lie beside real
    ticks.
    """
    flagged = [name for name in tables if _has_flags(name)]
    symbols = {
        file.symbol
        for name in flagged
        for file in tables[name].index
        if file.symbol is not None and file.source not in SYNTHETIC_SOURCES
    }
    return dict.fromkeys(flagged, tuple(sorted(symbols)))


def _has_flags(name: str) -> bool:
    dataset = DATASETS[name]
    return "flags" in dataset.schema.names and "sequence" in dataset.schema.names
