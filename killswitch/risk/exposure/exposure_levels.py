"""What of the exposure's settings may change while a process runs, and what may not."""

from __future__ import annotations

from typing import Final

from killswitch.risk.exposure.policy_settings import ExposureSettings
from killswitch.settings.settings_diff import needs_new_start

_FIXED: Final = ("groups", "max_symbols", "max_working_orders")


def bucket_levels(settings: ExposureSettings) -> dict[str, tuple[float, float]]:
    """Return target and most of every bucket, in per cent of equity."""
    buckets = settings.buckets
    names = type(buckets).model_fields
    return {name: (getattr(buckets, name).target_pct, getattr(buckets, name).max_pct) for name in names}


def require_same_book(before: ExposureSettings, after: ExposureSettings) -> None:
    """Refuse settings that a book which follows other ones already cannot take.

    Raises:
        ValueError: one sentence, naming what differs.
    """
    names = [f"exposure.{name}" for name in _FIXED if getattr(before, name) != getattr(after, name)]
    if names:
        raise ValueError(needs_new_start(names))
