"""Files of ticks: read in bounded memory, mapped by column name, imported exactly once."""

from ingest.files.importing import (
    ImportOutcome,
    ImportProgress,
    ImportReport,
    ImportStage,
    import_ticks,
)

__all__ = ["ImportOutcome", "ImportProgress", "ImportReport", "ImportStage", "import_ticks"]
