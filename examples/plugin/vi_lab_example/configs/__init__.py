"""One yaml for each choice, in the groups of vi_lab."""
