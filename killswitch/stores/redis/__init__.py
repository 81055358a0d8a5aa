"""Redis: the store, its connections, its scripts and its watch; also behind Sentinel."""
