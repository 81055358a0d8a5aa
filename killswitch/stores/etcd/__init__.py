"""etcd: the store, its channels, its watch, and one that is embedded."""
