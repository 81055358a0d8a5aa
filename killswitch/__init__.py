"""Stops every order router of a trading cluster at once, and proves that it did."""
