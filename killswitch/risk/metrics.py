"""Metrics of a process that may have many monitors: counters once in each registry, figures asked for at a scrape."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Final, Literal, NamedTuple, Protocol

from prometheus_client import REGISTRY, CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from killswitch.risk.events import FREEZE_TRIGGERS

_counters: Final[weakref.WeakKeyDictionary[CollectorRegistry, dict[str, Counter]]] = weakref.WeakKeyDictionary()
_counters_lock: Final = threading.Lock()


def counter_of(
    registry: CollectorRegistry | None,
    name: str,
    meaning: str,
    labels: Sequence[str],
    start: Iterable[Sequence[str]] = (),
) -> Counter:
    """Return the counter of this name in a registry, made at the first call: a second registration is an error there.

    Args:
        registry: the default registry of the process when ``None``.
        name: name of the metric.
        meaning: what it counts, for people.
        labels: names of its labels.
        start: values of the labels that are there from the start at 0, so that an alert on a rate sees the first one.
    """
    place = registry if registry is not None else REGISTRY
    with _counters_lock:
        of_registry = _counters.setdefault(place, {})
        if name not in of_registry:
            counter = Counter(name, meaning, list(labels), registry=place)
            for values in start:
                counter.labels(*values)
            of_registry[name] = counter
        return of_registry[name]


def freeze_counter(registry: CollectorRegistry | None) -> Counter:
    """Return ``freeze_triggered_total`` of a registry, which all risk monitors share."""
    name, meaning = "freeze_triggered_total", "Freezes by risk monitors of this process"
    return counter_of(registry, name, meaning, ["reason"], [(trigger,) for trigger in FREEZE_TRIGGERS])


class Figure(NamedTuple):
    """One sample: a gauge, or a counter whose name ``_total`` is put behind."""

    name: str
    kind: Literal["gauge", "counter"]
    meaning: str
    labels: Mapping[str, str]
    value: float


class FigureSource(Protocol):
    """Whatever has figures."""

    def figures(self) -> list[Figure]:
        """Return them as they are now."""


class SnapshotCollector(Collector):
    """One per registry, for every source that is still in use. Two sources with the same labels are added up."""

    _of: ClassVar[weakref.WeakKeyDictionary[CollectorRegistry, SnapshotCollector]] = weakref.WeakKeyDictionary()
    _of_lock = threading.Lock()

    def __init__(self) -> None:
        """Start without a source."""
        self._sources: weakref.WeakSet[FigureSource] = weakref.WeakSet()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, registry: CollectorRegistry | None) -> SnapshotCollector:
        """Return the collector of a registry, made at the first call; ``None`` is the default one of the process."""
        place = registry if registry is not None else REGISTRY
        with cls._of_lock:
            found = cls._of.get(place)
            if found is None:
                found = cls._of[place] = cls()
                place.register(found)
        return found

    def add(self, source: FigureSource) -> None:
        """Show the figures of a source for as long as it lives."""
        with self._lock:
            self._sources.add(source)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Name nothing at registration: which figures there are depends on the sources."""
        return []

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """Ask every source."""
        with self._lock:
            sources = list(self._sources)
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for source in sources:
            for figure in source.figures():
                if figure.name not in families:
                    family = GaugeMetricFamily if figure.kind == "gauge" else CounterMetricFamily
                    families[figure.name] = family(figure.name, figure.meaning, labels=list(figure.labels))
                key = (figure.name, tuple(figure.labels.items()))
                # Of two gauges the larger: that is the stricter one for everything that is shown here.
                before = sums.get(key)
                if before is None:
                    sums[key] = float(figure.value)
                elif figure.kind == "gauge":
                    sums[key] = max(before, float(figure.value))
                else:
                    sums[key] = before + float(figure.value)
        for (name, labels), value in sums.items():
            families[name].add_metric([text for _, text in labels], value)
        return families.values()
