"""Programs and maps: compiled, loaded, pinned, read."""
