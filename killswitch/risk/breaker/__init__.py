"""The circuit breaker: its machine, its file, and the door to both."""
