"""ZooKeeper: the store, its connection, its watch and its lease."""
