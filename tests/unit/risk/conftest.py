"""Logs of the tests of this folder are kept for them, and not printed."""

from __future__ import annotations

from tests.support.logs import logs

__all__ = ["logs"]
