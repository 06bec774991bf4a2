"""Where market data is kept: validated at one door, read through one snapshot, never lost."""
