"""The metric ``freeze_triggered_total``."""

from __future__ import annotations

import threading

from prometheus_client import CollectorRegistry, Counter

from killswitch.risk.events import FREEZE_TRIGGERS

_counters: dict[CollectorRegistry, Counter] = {}
_counters_lock = threading.Lock()


def freeze_counter(registry: CollectorRegistry) -> Counter:
    """One counter per registry, however many monitors: a second registration of a name is an error there."""
    with _counters_lock:
        if registry not in _counters:
            counter = Counter(
                "freeze_triggered_total", "Freezes by risk monitors of this process", ["reason"], registry=registry
            )
            for trigger in FREEZE_TRIGGERS:
                counter.labels(reason=trigger)  # from the start at 0, so that an alert on its rate sees the first one
            _counters[registry] = counter
        return _counters[registry]
