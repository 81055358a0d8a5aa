"""The gate: the shared-memory page that routers read before every order and the node's agent writes.

``docs/gate.md`` tells how to use it, what every byte means, and what it does not promise. Standard library only.
"""

from __future__ import annotations

from killswitch.gate.layout import Cause, GateState
from killswitch.gate.reader import Blocked, Gate, GateError, GateUnavailable
from killswitch.gate.writer import GateOwned, GateWriter

__all__ = [
    "Gate",
    "GateState",
    "Cause",
    "GateWriter",
    "GateError",
    "GateUnavailable",
    "GateOwned",
    "Blocked",
]
