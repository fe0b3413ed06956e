"""How many scores of each segment lie above thresholds."""
