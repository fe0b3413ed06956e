"""A window into the tree of a running server, or of one that was recorded."""
