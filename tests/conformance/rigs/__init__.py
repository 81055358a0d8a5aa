"""The stores under test: a file each."""
