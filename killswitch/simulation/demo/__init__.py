"""The demo: a cluster of processes that is stopped by its own rule, with proof."""
