"""The lake: a Delta Lake table of plain Parquet a dataset, written once and read by anybody."""
