"""Metrics that cost nothing until somebody looks: each source is asked for its figures when they are scraped."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, NamedTuple, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector


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
    def of(cls, registry: CollectorRegistry) -> SnapshotCollector:
        """Return the collector of a registry, made at the first call."""
        with cls._of_lock:
            found = cls._of.get(registry)
            if found is None:
                found = cls._of[registry] = cls()
                registry.register(found)
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
