"""Stops every order router of a trading cluster at once, and proves that it did.

The names here are what an order router needs; importing them imports nothing outside the standard library.
"""

from __future__ import annotations

from killswitch.core.modes import Mode
from killswitch.gate.reader import Blocked, Gate, GateError, GateUnavailable

__version__ = "0.1.0"

__all__ = ["Blocked", "Gate", "GateError", "GateUnavailable", "Mode", "__version__"]
