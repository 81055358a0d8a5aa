"""What a rehearsal says on stderr: its kills are its report, and only what went wrong is left for the log."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import structlog


def only_errors() -> None:
    """Drop every line of the log but those of level ``error``; the CRITICAL ones are rehearsed."""
    processors = structlog.get_config()["processors"]
    structlog.configure(processors=[_drop_rehearsed, *processors])


def _drop_rehearsed(_logger: Any, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if method != "error":
        raise structlog.DropEvent
    return line
