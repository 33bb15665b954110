"""tserve: listeners and connections around the routing core."""
