"""The Flight role: everything that crosses the wire, and who may."""
