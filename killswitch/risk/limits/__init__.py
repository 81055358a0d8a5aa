"""Limits in USD before an order, working orders, and the freeze of a process."""
