"""The metric ``killswitch_orders_refused_total``."""

from __future__ import annotations

import threading
from typing import get_args

from prometheus_client import CollectorRegistry, Counter

from killswitch.risk.refusal import RefusalKind

_counters: dict[CollectorRegistry, Counter] = {}
_counters_lock = threading.Lock()


def refusal_counter(registry: CollectorRegistry) -> Counter:
    """One counter per registry, however many controls; every kind is there from the start, at 0."""
    with _counters_lock:
        if registry not in _counters:
            counter = Counter(
                "killswitch_orders_refused_total",
                "Orders that the pre-trade controls refused.",
                ["kind"],
                registry=registry,
            )
            for kind in get_args(RefusalKind):
                counter.labels(kind=kind)
            _counters[registry] = counter
        return _counters[registry]
