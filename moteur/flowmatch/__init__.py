"""flowmatch."""
