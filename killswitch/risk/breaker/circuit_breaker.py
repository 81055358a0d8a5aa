"""The circuit breaker that threads and processes share: lock, clock, file, log and metrics around the pure machine.

What it does not do: it cancels nothing and knows nothing of other machines. ``on_transition`` is where an agent makes
a freeze of the cluster out of an engagement. Cancels never come this way (A CANCEL ALWAYS PASSES).

Engaging needs nothing: it holds in this process before any lock of the file is asked for, and stands whether or not
the file can be written. Loosening needs everything: the lock, the newest state, and the write.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry

from killswitch.clock import NowNs, WallClock, now_ns, time_or_unknown, wall_now
from killswitch.risk.breaker.breaker_file import StateFile, StateFileFault
from killswitch.risk.breaker.breaker_machine import (
    Bad,
    BreakerMode,
    BreakerState,
    Effect,
    Event,
    Good,
    NewSettings,
    Probe,
    Release,
    TimePassed,
    restarted,
    step,
)
from killswitch.risk.breaker.breaker_settings import BreakerSettings, ReasonClass
from killswitch.risk.breaker.breaker_transition import BreakerTransition, Told
from killswitch.risk.metrics import Figure, SnapshotCollector
from killswitch.safe_log import say
from killswitch.settings.settings_diff import say_changed

__all__ = ["BreakerTransition", "CircuitBreaker", "ReleaseRefused"]

TRANSITIONS_KEPT: Final = 1_000

_FILE_TRIES: Final = 5
_RELEASE_REFUSED: Final = "release_refused"
_NOT_TOLD: Final = frozenset({"probe_passed", "probe_refused", "release_refused"})


class ReleaseRefused(Exception):
    """A release that was not done; the message says why. The breaker is as it was."""


class CircuitBreaker:
    """``SAFE``, ``ENGAGED`` or ``HALF_OPEN``. Thread-safe; the rules are in ``breaker_machine``.

    Args:
        settings: the rules; the defaults when ``None``.
        name: tells several breakers of a process apart in logs and metrics.
        clock: deadline clock, never the time of day: a step of that does nothing.
        wall_clock: the time that transitions carry.
        on_transition: told every transition, once, after it holds, with no lock held. If it raises, that is logged.
        registry: where the metrics are; the default registry of the process when ``None``.

    Attributes:
        restricted: False while the breaker is SAFE, as far as this process has seen.
        engagement: number that a release must name, as far as this process has seen.

    A state file that is missing, unreadable or no state engages with the class ``unknown``, and only a person
    releases. :meth:`create_state_file` writes the first one.
    """

    def __init__(
        self,
        settings: BreakerSettings | None = None,
        *,
        name: str = "default",
        clock: NowNs = now_ns,
        wall_clock: WallClock = wall_now,
        on_transition: Callable[[BreakerTransition], None] | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self.settings = settings if settings is not None else BreakerSettings()
        self.name = name
        self.restricted = True
        self.engagement = 0
        self._clock = clock
        self._wall_clock = wall_clock
        self._on_transition = on_transition
        self._lock = threading.Lock()
        self._state = BreakerState()
        self._transitions: deque[BreakerTransition] = deque(maxlen=TRANSITIONS_KEPT)
        self._counts: Counter[tuple[str, str]] = Counter()
        # Engagements that are not in the file yet, one per class; while there are any, the file loosens nothing.
        # Likewise the settings that changed while it was engaged.
        self._unwritten: dict[ReasonClass | None, Bad | NewSettings] = {}
        self._file: StateFile | None = None
        if self.settings.state_file is not None:
            self._file = StateFile(self.settings, clock=clock, wall_clock=wall_clock)
        with self._lock:
            seen = self._first_state()
        self._tell(seen, {})
        SnapshotCollector.of(registry).add(self)

    @classmethod
    def create_state_file(cls, settings: BreakerSettings) -> Path:
        """Write the first state file: SAFE. A person does this once; a process must not do it at its start.

        Raises:
            FileExistsError: there is one.
            StateFileFault: it cannot be written.
            ValueError: the settings name no file.
        """
        file = StateFile(settings, clock=now_ns, wall_clock=wall_now)
        try:
            with file.locked():
                if file.path.exists():
                    raise FileExistsError(f"{file.path}: there is a state file; a release is what makes it SAFE")
                file.write(BreakerState(engagement=_fresh_engagement(now_ns())))
        finally:
            file.close()
        return file.path

    # ---- what it says

    @property
    def state(self) -> BreakerMode:
        """``SAFE``, ``ENGAGED`` or ``HALF_OPEN``, with what other processes and the time have done to it."""
        return self.snapshot().mode

    def is_engaged(self) -> bool:
        """True while no order passes."""
        return self.state is BreakerMode.ENGAGED

    def snapshot(self) -> BreakerState:
        """Return the whole state, brought up to date."""
        self.tick()
        return self._state

    def transitions(self) -> tuple[BreakerTransition, ...]:
        """Return the newest transitions, oldest first."""
        with self._lock:
            return tuple(self._transitions)

    def allows(self) -> bool:
        """Tell whether an order may go now; while half-open a True uses up one probe. Never raises."""
        if not self.restricted and (self._file is None or self._file.unchanged()):
            return True
        return any(effect.what == "probe_passed" for effect in self._apply(Probe(), {}))

    # ---- what makes it engage and recover

    def engage(
        self, reason: str, metadata: Mapping[str, Any] | None = None, *, kind: ReasonClass | str = ReasonClass.MANUAL
    ) -> bool:
        """Engage now, latched. Never raises.

        Args:
            reason: the sentence for people.
            metadata: figures that led to it, for the log and :meth:`transitions`.
            kind: class of the reason; one that does not exist counts as ``unknown``, which only a person releases.

        Returns:
            True when this call latched a cause: it engaged, or one more class of reason holds the breaker now, or a
            pause has become lasting. False when that class was latched already.
        """
        effects = self._apply(Bad(_class(kind), str(reason), certain=True), metadata or {})
        return any(effect.what == "latched" for effect in effects)

    def bad_reading(
        self, kind: ReasonClass | str, reason: str, metadata: Mapping[str, Any] | None = None
    ) -> tuple[Effect, ...]:
        """Take a bad reading of a sensor: engage at once; as many as the settings say latch it. Never raises.

        Returns:
            What it did; nothing when it only counted.
        """
        return self._apply(Bad(_class(kind), str(reason)), metadata or {})

    def good_reading(self, kind: ReasonClass | str) -> None:
        """Take a good reading of a sensor. Never raises."""
        if self.restricted:
            self._apply(Good(_class(kind)), {})

    def tick(self) -> None:
        """Let time pass: lift a pause that is over, see what other processes did, write what could not be written."""
        if self.restricted or (self._file is not None and not self._file.unchanged()):
            self._apply(TimePassed(), {})

    def release(self, actor: str, reason: str = "", *, engagement: int, probation: bool = False) -> None:
        """Let go, in the name of a person.

        Args:
            actor: the person who is responsible for it.
            reason: why, for people.
            engagement: number of the engagement that the person has looked at; a newer one voids the release.
            probation: half-open first instead of safe at once.

        Raises:
            ReleaseRefused: no name, nothing to release, a newer engagement, or the state file could not be used.
        """
        effects = self._apply(Release(actor, reason, engagement, probation), {"actor": str(actor)})
        refusal = next((effect.reason for effect in effects if effect.what == _RELEASE_REFUSED), None)
        if refusal is not None:
            raise ReleaseRefused(refusal)

    def set_settings(self, settings: BreakerSettings) -> None:
        """Go by other settings from now on; they never release, half-open or shorten anything that runs.

        While it is engaged or half-open, what counts towards safe begins again: good readings count from nothing, and
        a cool-down or the hold of a pause lasts as long as it would have, or longer where the new settings say so. What
        only a person could release before still waits for one (it counts as escalated). What is tighter holds at once;
        see ``breaker_machine``. Probes that are left become no more.

        Raises:
            ValueError: ``state_file`` or ``file_lock`` would change, which needs a new start. Nothing has changed.
        """
        with self._lock:
            before = self.settings
            require_changeable(before, settings)
            if settings == before:
                return
            self.settings = settings
            if self._file is not None:
                self._file.close()
                self._file = StateFile(settings, clock=self._clock, wall_clock=self._wall_clock)
            effects, seen = self._tighten(NewSettings(before))
        self._tell(seen, {})
        self._tell(effects, {})
        say_changed("circuit breaker settings changed", before, settings, breaker=self.name)

    def close(self) -> None:
        """Let go of the state file; it is opened again when the breaker is used again."""
        with self._lock:
            if self._file is not None:
                self._file.close()

    # ---- metrics

    def figures(self) -> list[Figure]:
        """Return what is shown on /metrics, as of now."""
        state, now = self._state, self._now()
        modes = {BreakerMode.SAFE: 0.0, BreakerMode.HALF_OPEN: 1.0, BreakerMode.ENGAGED: 2.0}
        cooling = state.mode is BreakerMode.ENGAGED
        left_s = max(0, state.cooldown_until_ns - now) / 1e9 if cooling else 0.0
        labels = {"breaker": self.name}
        found = [
            Figure("killswitch_breaker_mode", "gauge", "0 safe, 1 half-open, 2 engaged.", labels, modes[state.mode]),
            Figure("killswitch_breaker_escalated", "gauge", "1: only a person releases.", labels, state.escalated),
            Figure("killswitch_breaker_cooldown_seconds_left", "gauge", "Cool-down left.", labels, left_s),
            Figure("killswitch_breaker_probes_left", "gauge", "Orders that may still pass.", labels, state.probes_left),
            Figure("killswitch_breaker_repeats", "gauge", "Engagements of this back-off.", labels, state.repeats),
        ]
        with self._lock:
            counts = dict(self._counts)
        meaning = "Transitions of circuit breakers, by what happened and class of reason."
        for kind in ReasonClass:
            # From the start at 0, so that an alert on its rate sees the first one.
            for what in ("paused", "latched"):
                counts.setdefault((what, kind.value), 0)
        for (what, reason_class), count in sorted(counts.items()):
            told = {**labels, "what": what, "kind": reason_class}
            found.append(Figure("killswitch_breaker_transitions", "counter", meaning, told, count))
        return found

    # ---- inside

    def _first_state(self) -> tuple[Told, ...]:
        if self._file is None:
            self._publish(BreakerState(safe_since_ns=self._now()))
            return ()
        try:
            self._publish(restarted(self._file.read(), self._now(), self.settings))
        except StateFileFault as fault:
            self._state = BreakerState(engagement=_fresh_engagement(self._now()))
            return self._distrust_file(str(fault))
        if self._state.mode is BreakerMode.SAFE:
            return ()
        return (Told("taken_from_file", _reasons_of(self._state)),)

    def _apply(self, event: Event, metadata: Mapping[str, Any]) -> tuple[Effect, ...]:
        seen: tuple[Told, ...]
        with self._lock:
            if isinstance(event, Bad):
                effects, seen = self._tighten(event)
            else:
                effects, seen = self._loosen(event)
        self._tell(seen, {})
        self._tell(effects, metadata)
        return effects

    def _tighten(self, event: Bad | NewSettings) -> tuple[tuple[Effect, ...], tuple[Told, ...]]:
        """A bad reading, or other settings: it holds here first, whatever becomes of the file."""
        after, effects = step(self._state, event, self._now(), self.settings)
        changed = after.version != self._state.version
        self._publish(after)
        if self._file is None:
            return effects, ()
        if isinstance(event, NewSettings):
            if not (changed or self._unwritten):
                return effects, ()  # it only counts anew, and that is for this process alone
            self._unwritten.setdefault(None, event)
        elif changed or self._unwritten or not self._file.unchanged():
            self._unwritten[event.kind] = event
        else:
            return effects, ()
        return effects, self._write_unwritten(self._file)

    def _loosen(self, event: Event) -> tuple[tuple[Effect, ...], tuple[Told, ...]]:
        """Anything but a bad reading: with a file, only in agreement with it."""
        seen: tuple[Told, ...] = ()
        for _ in range(_FILE_TRIES):
            seen += self._catch_up()
            after, effects = step(self._state, event, self._now(), self.settings)
            if after.version == self._state.version or self._file is None:
                self._publish(after)
                return effects, seen
            if self._unwritten:
                return _refusal(event, "an engagement could not be written to the state file yet"), seen
            try:
                with self._file.locked():
                    if not self._file.unchanged():
                        continue  # another process wrote after this one had looked
                    self._file.write(after)
                    self._publish(after)
                    return effects, seen
            except StateFileFault as fault:
                return _refusal(event, str(fault)), (*seen, Told("file_failed", str(fault)))
        return _refusal(event, "other processes kept changing the state file"), seen

    def _catch_up(self) -> tuple[Told, ...]:
        """See what other processes wrote, and write what this one could not."""
        if self._file is None:
            return ()
        if self._unwritten:
            return self._write_unwritten(self._file)
        if self._file.unchanged():
            return ()
        try:
            found = self._file.read()
        except StateFileFault as fault:
            return self._distrust_file(str(fault))
        if found.version < self._state.version or found.engagement < self._state.engagement:
            return self._distrust_file(f"{self._file.path}: is older than what was read from it before")
        if found.version == self._state.version:
            return ()  # the same state; readings counted here stay
        self._publish(found)
        return (Told("taken_from_file", _reasons_of(found)),)

    def _write_unwritten(self, file: StateFile) -> tuple[Told, ...]:
        """Put engagements of this process on top of what the file says now. What fails is tried again later."""
        try:
            with file.locked():
                state = self._state if file.unchanged() else self._on_top_of(file)
                file.write(state)
                self._publish(state)
                self._unwritten.clear()
        except StateFileFault as fault:
            return (Told("file_failed", str(fault)),)
        return ()

    def _on_top_of(self, file: StateFile) -> BreakerState:
        """The file's state with the engagements of this process in it; neither number goes back."""
        now = self._now()
        try:
            state = file.read()
        except StateFileFault as fault:
            file.keep_unreadable()
            # What other processes had in it is lost, so that it is not enough to keep what is known here.
            state, _ = step(self._state, Bad(ReasonClass.UNKNOWN, str(fault), certain=True), now, self.settings)
        for event in self._unwritten.values():
            state, _ = step(state, event, now, self.settings)
        return replace(
            state,
            version=max(state.version, self._state.version),
            engagement=max(state.engagement, self._state.engagement),
        )

    def _distrust_file(self, why: str) -> tuple[Told, ...]:
        """Engage because what holds is not known, and write that down."""
        effects, seen = self._tighten(Bad(ReasonClass.UNKNOWN, why, certain=True))
        return (*(Told(effect.what, effect.reason, effect.kind) for effect in effects), *seen)

    def _publish(self, state: BreakerState) -> None:
        """The lock is held. Closing shows before anything else, opening after everything else."""
        restricted = state.mode is not BreakerMode.SAFE
        if restricted:
            self.restricted = True
        self._state = state
        self.engagement = state.engagement
        self.restricted = restricted

    def _tell(self, told: Sequence[Effect | Told], metadata: Mapping[str, Any]) -> None:
        for one in told:
            if one.what in _NOT_TOLD:
                continue
            transition = BreakerTransition(
                timestamp=time_or_unknown(self._wall_clock),
                what=one.what,
                mode=self._state.mode,
                kind=one.kind,
                reason=one.reason,
                engagement=self._state.engagement,
                metadata=metadata,
            )
            with self._lock:
                self._transitions.append(transition)
                self._counts[(transition.what, "" if one.kind is None else one.kind.value)] += 1
            self._log(transition)
            if self._on_transition is not None:
                try:
                    self._on_transition(transition)
                except Exception as error:  # whatever it raises, the breaker stands
                    say("error", "a transition of the circuit breaker could not be passed on", error=repr(error))

    def _log(self, transition: BreakerTransition) -> None:
        loud = transition.what in ("paused", "latched", "joined", "escalated", "file_failed")
        say("critical" if loud else "warning", "circuit breaker", breaker=self.name, **transition.to_json())

    def _now(self) -> int:
        """The time; a clock that fails stands still, which ends no cool-down."""
        try:
            return int(self._clock())
        except Exception:  # whatever a clock raises, nothing may be decided from it
            return self._state.last_ns


def _refusal(event: Event, why: str) -> tuple[Effect, ...]:
    if isinstance(event, Release):
        return (Effect(_RELEASE_REFUSED, f"not released: {why}"),)
    return (Effect("probe_refused", why),) if isinstance(event, Probe) else ()


def require_changeable(before: BreakerSettings, after: BreakerSettings) -> None:
    """Refuse settings that a breaker cannot take while it runs.

    Raises:
        ValueError: one sentence, naming them.
    """
    fixed = [name for name in ("state_file", "file_lock") if getattr(before, name) != getattr(after, name)]
    if fixed:
        changes = " and ".join(f"{name} from {getattr(before, name)!r} to {getattr(after, name)!r}" for name in fixed)
        raise ValueError(f"{changes}: cannot change while the process runs; start it again. Nothing has changed")


def _class(kind: ReasonClass | str) -> ReasonClass:
    try:
        return ReasonClass(kind)
    except ValueError:
        return ReasonClass.UNKNOWN


def _reasons_of(state: BreakerState) -> str:
    return "; ".join(f"{cause.kind}: {cause.reason}" for cause in state.causes) or "nothing holds it"


def _fresh_engagement(at_ns: int) -> int:
    """A number unlike those of an earlier state that is lost: a release of that one must not fit by chance."""
    return max(0, at_ns // 1_000_000)
