"""The circuit breaker as a pure state machine: (state, event, now) -> (state, effects). No clock, no lock, no file.

In words:

* **Engaging.** The first bad reading engages at once, in any state. Unless its class needs no confirmation, that is a
  *pause* (provisional): further bad readings of the class latch it, and when they do not come it lifts itself, once its
  own sensor has said good and the hold has passed. A sensor that falls silent keeps its pause. ``Bad`` with ``certain``
  latches at once.
* **Causes.** Each class of reason is a cause of its own; the breaker lets go when the last one has. ``engagement``
  grows with everything that a person who releases should have seen: a new engagement, a new cause, a pause that
  latches. A release that names an older number is refused.
* **Back-off.** Every latched engagement after a recovery doubles the cool-down, up to a cap; a long enough safe time
  starts the series over. A bad reading starts the cool-down again, without doubling.
* **Recovering.** When every cause is latched and transient, and each class has had its good readings in a row *after*
  the cool-down, the breaker is half-open: a few probes pass. Good readings make it safe, one bad one latches it again
  at once. Time by itself never loosens a latched engagement, for silence is not a good reading.
* **Other settings.** They never make it looser by themselves: what counts towards safe begins again, a running
  cool-down or hold only gets longer, and what only a person could release still waits for one. What is tighter holds at
  once: readings that are enough now latch, engagements that are enough now escalate, and what was recovering by itself
  and now may not is engaged again.
* **A person.** A lasting cause, or too many engagements in a window (escalation), is released by a named person alone.

Time is nanoseconds on a clock that does not go back; one that does stands still here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Literal

from killswitch.core.canonical import writable_text
from killswitch.risk.breaker.breaker_settings import ONLY_A_PERSON, BreakerSettings, ReasonClass, ns

REASON_MAX_CHARACTERS = 500


class BreakerMode(enum.StrEnum):
    """``SAFE``: orders pass. ``ENGAGED``: none does. ``HALF_OPEN``: a few probes do."""

    SAFE = "SAFE"
    ENGAGED = "ENGAGED"
    HALF_OPEN = "HALF_OPEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One class of reason that holds the breaker.

    Attributes:
        kind: the class.
        reason: the newest sentence for people.
        latched: False while it is a pause that may lift itself.
        bad_readings: bad readings since it began.
        last_bad_ns: when the newest one came.
        good_readings: good readings in a row since then, as far as they count.
    """

    kind: ReasonClass
    reason: str
    latched: bool
    bad_readings: int = 1
    last_bad_ns: int = 0
    good_readings: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerState:
    """Everything that the breaker remembers.

    Attributes:
        version: grows by one with every change that is more than counting readings.
        mode: safe, engaged or half-open.
        engagement: grows with everything that a person who releases should have seen; never goes back.
        causes: what holds it, one per class, sorted by class; none when safe.
        repeats: latched engagements in this series; the cool-down doubles with each.
        engagements_ns: when it engaged lately, oldest first; at most as many as escalate.
        escalated: only a person releases.
        cooldown_until_ns: no good reading of a latched cause counts before this.
        probes_left: probes that may still pass while half-open.
        safe_since_ns: since when it is safe.
        last_ns: the newest time seen.
    """

    version: int = 0
    mode: BreakerMode = BreakerMode.SAFE
    engagement: int = 0
    causes: tuple[Cause, ...] = ()
    repeats: int = 0
    engagements_ns: tuple[int, ...] = ()
    escalated: bool = False
    cooldown_until_ns: int = 0
    probes_left: int = 0
    safe_since_ns: int = 0
    last_ns: int = 0

    def cause(self, kind: ReasonClass) -> Cause | None:
        """Return the cause of one class, ``None`` when there is none."""
        return next((cause for cause in self.causes if cause.kind is kind), None)


@dataclass(frozen=True, slots=True)
class Bad:
    """A bad reading of one class; ``certain`` latches without confirmation."""

    kind: ReasonClass
    reason: str
    certain: bool = False


@dataclass(frozen=True, slots=True)
class Good:
    """A good reading of one class."""

    kind: ReasonClass


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Nothing but time."""


@dataclass(frozen=True, slots=True)
class Probe:
    """An order asks whether it may go."""


@dataclass(frozen=True, slots=True)
class Release:
    """A named person lets go of the engagement that they have seen.

    Attributes:
        actor: the person.
        reason: why, for people.
        engagement: number of the engagement that the person has looked at.
        probation: half-open first, where there is a reading that can show that all is well.
    """

    actor: str
    reason: str
    engagement: int
    probation: bool = False


@dataclass(frozen=True, slots=True)
class NewSettings:
    """The settings of the step are new; ``before`` are those until now."""

    before: BreakerSettings


Event = Bad | Good | TimePassed | Probe | Release | NewSettings

EffectKind = Literal[
    "paused", "latched", "joined", "escalated", "half_opened", "probe_passed", "probe_refused", "recovered",
    "pause_lifted", "released", "release_refused",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Effect:
    """One thing that an event did; ``kind`` of reason where one class is meant."""

    what: EffectKind
    reason: str = ""
    kind: ReasonClass | None = None


Outcome = tuple[BreakerState, tuple[Effect, ...]]


def step(state: BreakerState, event: Event, now_ns: int, settings: BreakerSettings) -> Outcome:
    """Return what an event makes of a state, and what happened. Never raises for any state, event and time."""
    now = max(now_ns, state.last_ns)
    match event:
        case Bad():
            after, effects = _bad(state, event, now, settings)
        case Good():
            after, effects = _good(state, event.kind, now, settings)
        case TimePassed():
            after, effects = _settle(state, now, settings)
        case Probe():
            after, effects = _probe(state)
        case Release():
            after, effects = _release(state, event, now, settings)
        case NewSettings():
            after, effects = _new_settings(state, event.before, now, settings)
    if after is state:
        return state, effects
    return replace(after, last_ns=now, version=state.version + (_lasting(after) != _lasting(state))), effects


def restarted(state: BreakerState, now_ns: int, settings: BreakerSettings) -> BreakerState:
    """Return a state as a process that has just started takes it: what counts towards safe begins again."""
    return replace(
        state,
        causes=tuple(replace(cause, last_bad_ns=now_ns, good_readings=0) for cause in state.causes),
        cooldown_until_ns=max(state.cooldown_until_ns, now_ns + settings.cooldown_ns(state.repeats)),
    )


def rebased(state: BreakerState, now_ns: int, settings: BreakerSettings) -> BreakerState:
    """Return a state of another clock as if everything in it had happened now: nothing ends sooner for it."""
    return replace(
        restarted(replace(state, cooldown_until_ns=0), now_ns, settings),
        engagements_ns=tuple(now_ns for _ in state.engagements_ns),
        safe_since_ns=now_ns,
        last_ns=now_ns,
    )


def _lasting(state: BreakerState) -> tuple[object, ...]:
    """What of a state is more than counting: it must survive a restart and reach other processes."""
    causes = tuple(
        # Of a pause also how often it was confirmed: a restart must not make it forget.
        (cause.kind, cause.latched, cause.reason, 0 if cause.latched else cause.bad_readings)
        for cause in state.causes
    )
    return (
        state.mode, state.engagement, causes, state.repeats, state.engagements_ns, state.escalated, state.probes_left,
    )  # fmt: skip


# ---- bad readings


def _bad(state: BreakerState, event: Bad, now: int, settings: BreakerSettings) -> Outcome:
    if state.mode is BreakerMode.ENGAGED:
        return _worse(state, event, now, settings)
    return _engage(state, event, now, settings)


def _engage(state: BreakerState, event: Bad, now: int, settings: BreakerSettings) -> Outcome:
    """Safe or half-open becomes engaged."""
    probing = state.mode is BreakerMode.HALF_OPEN
    quiet = not probing and now - state.safe_since_ns >= ns(settings.backoff_reset_seconds)
    repeats = 0 if quiet else state.repeats
    window = tuple(at for at in state.engagements_ns if now - at < ns(settings.escalate_window_seconds))
    window = (*window, now)[-settings.escalate_after_engagements :]
    escalated = state.escalated or len(window) >= settings.escalate_after_engagements
    latched = event.certain or probing or escalated or settings.confirmations_of(event.kind) == 0
    if latched:
        repeats += 1
    still_there = tuple(replace(cause, good_readings=0) for cause in state.causes if cause.kind is not event.kind)
    cause = Cause(kind=event.kind, reason=_short(event.reason), latched=latched, last_bad_ns=now)
    engaged = replace(
        state,
        mode=BreakerMode.ENGAGED,
        engagement=state.engagement + 1,
        causes=_sorted((*still_there, cause)),
        repeats=repeats,
        engagements_ns=window,
        escalated=escalated,
        cooldown_until_ns=now + settings.cooldown_ns(repeats) if latched else state.cooldown_until_ns,
        probes_left=0,
    )
    effects = [Effect("latched" if latched else "paused", cause.reason, cause.kind)]
    if escalated and not state.escalated:
        effects.append(_escalation(settings))
    return engaged, tuple(effects)


def _worse(state: BreakerState, event: Bad, now: int, settings: BreakerSettings) -> Outcome:
    """Engaged stays engaged, with one more reading or one more cause."""
    was_latched = any(cause.latched for cause in state.causes)
    known = state.cause(event.kind)
    needed = settings.confirmations_of(event.kind)
    reason = _short(event.reason)
    effects: tuple[Effect, ...] = ()
    if known is None:
        latched = event.certain or state.escalated or needed == 0
        cause = Cause(kind=event.kind, reason=reason, latched=latched, last_bad_ns=now)
        effects = (Effect("joined", reason, event.kind), *([Effect("latched", reason, event.kind)] if latched else []))
    else:
        count = known.bad_readings + 1
        latched = known.latched or event.certain or count > needed
        # Readings of one cause differ in their figures; only what somebody is certain of is news.
        told = event.certain and reason != known.reason
        cause = replace(
            known,
            reason=reason if told else known.reason,
            latched=latched,
            bad_readings=count,
            # Settings that shorten the hold put this ahead of the clock, and another bad reading must not take it back.
            last_bad_ns=max(known.last_bad_ns, now),
            good_readings=0,
        )
        if latched and not known.latched:
            effects = (Effect("latched", reason, event.kind),)
        elif told:
            effects = (Effect("joined", reason, event.kind),)
    repeats = state.repeats + (cause.latched and not was_latched)
    worse = replace(
        state,
        engagement=state.engagement + (1 if effects else 0),
        causes=_sorted((*(other for other in state.causes if other.kind is not event.kind), cause)),
        repeats=repeats,
        cooldown_until_ns=(
            max(state.cooldown_until_ns, now + settings.cooldown_ns(repeats))
            if cause.latched
            else state.cooldown_until_ns
        ),
    )
    return worse, effects


# ---- good readings and time


def _good(state: BreakerState, kind: ReasonClass, now: int, settings: BreakerSettings) -> Outcome:
    cause = state.cause(kind)
    if cause is None:
        return _settle(state, now, settings)
    counts = state.mode is BreakerMode.HALF_OPEN or not cause.latched or now >= state.cooldown_until_ns
    if counts:
        better = replace(cause, good_readings=cause.good_readings + 1)
        state = replace(state, causes=_sorted((*(other for other in state.causes if other.kind is not kind), better)))
    return _settle(state, now, settings)


def _settle(state: BreakerState, now: int, settings: BreakerSettings) -> Outcome:
    """Take the steps towards safe that time and readings allow."""
    if state.mode is BreakerMode.HALF_OPEN:
        return _close(state, now, settings)
    if state.mode is BreakerMode.SAFE:
        return state, ()
    hold = ns(settings.provisional_hold_seconds)
    lifted = tuple(
        cause
        for cause in state.causes
        if not cause.latched and cause.good_readings > 0 and now - cause.last_bad_ns >= hold
    )
    effects = tuple(Effect("pause_lifted", cause.reason, cause.kind) for cause in lifted)
    if lifted:
        state = replace(state, causes=tuple(cause for cause in state.causes if cause not in lifted))
    if not state.causes:
        return _safe(state, now), effects
    recovered = all(
        cause.latched and settings.is_transient(cause.kind) and cause.good_readings >= settings.recovery_good_readings
        for cause in state.causes
    )
    if state.escalated or not recovered or now < state.cooldown_until_ns:
        return state, effects
    return _half_open(state, settings), (*effects, Effect("half_opened", _reasons(state)))


def _close(state: BreakerState, now: int, settings: BreakerSettings) -> Outcome:
    if any(cause.good_readings < settings.half_open_good_readings for cause in state.causes):
        return state, ()
    return _safe(state, now), (Effect("recovered", _reasons(state)),)


def _half_open(state: BreakerState, settings: BreakerSettings) -> BreakerState:
    return replace(
        state,
        mode=BreakerMode.HALF_OPEN,
        causes=tuple(replace(cause, good_readings=0) for cause in state.causes),
        probes_left=settings.half_open_probes,
    )


def _safe(state: BreakerState, now: int) -> BreakerState:
    return replace(state, mode=BreakerMode.SAFE, causes=(), probes_left=0, safe_since_ns=now)


# ---- orders and persons


def _probe(state: BreakerState) -> Outcome:
    if state.mode is BreakerMode.SAFE:
        return state, (Effect("probe_passed"),)
    if state.mode is BreakerMode.HALF_OPEN and state.probes_left > 0:
        return replace(state, probes_left=state.probes_left - 1), (Effect("probe_passed"),)
    return state, (Effect("probe_refused", _reasons(state)),)


def _release(state: BreakerState, event: Release, now: int, settings: BreakerSettings) -> Outcome:
    fault = _release_fault(state, event)
    if fault is not None:
        return state, (Effect("release_refused", fault),)
    # The person has looked: the window starts over. The back-off does not, for it is about recovering alone.
    released = replace(state, engagements_ns=(), escalated=False)
    who = _short(f"{event.actor}: {event.reason}" if event.reason else event.actor)
    if event.probation:
        sensed = tuple(replace(cause, latched=True) for cause in state.causes if cause.kind not in ONLY_A_PERSON)
        return _half_open(replace(released, causes=sensed), settings), (Effect("released", who),)
    return _safe(released, now), (Effect("released", who),)


def _release_fault(state: BreakerState, event: Release) -> str | None:
    if not _is_name(event.actor):
        return "a release names the person who is responsible for it; no name was given"
    if state.mode is BreakerMode.SAFE:
        return "there is nothing to release: the breaker is SAFE"
    if event.engagement != state.engagement or isinstance(event.engagement, bool):
        return (
            f"the release is for engagement {event.engagement}, and the breaker is at {state.engagement}: "
            f"look at it again ({_reasons(state)})"
        )
    if event.probation and not any(cause.kind not in ONLY_A_PERSON for cause in state.causes):
        return "probation needs a cause that readings can show to be over, and there is none; release without it"
    return None


# ---- other settings


def _new_settings(state: BreakerState, before: BreakerSettings, now: int, settings: BreakerSettings) -> Outcome:
    if state.mode is BreakerMode.SAFE:
        return state, ()
    again = replace(state, causes=tuple(replace(cause, good_readings=0) for cause in state.causes))
    if state.mode is BreakerMode.HALF_OPEN:
        return _still_half_open(again, before, now, settings)
    # A pause begins its hold again, and the longer of the two holds.
    shorter_ns = max(0, ns(before.provisional_hold_seconds) - ns(settings.provisional_hold_seconds))
    causes = tuple(
        cause if cause.latched else replace(cause, last_bad_ns=max(cause.last_bad_ns, now + shorter_ns))
        for cause in again.causes
    )
    enough = [one for one in causes if not one.latched and one.bad_readings > settings.confirmations_of(one.kind)]
    was_latched = any(cause.latched for cause in causes)
    repeats = state.repeats + (bool(enough) and not was_latched)
    causes = tuple(replace(one, latched=True, last_bad_ns=now) if one in enough else one for one in causes)
    cooldown_ns = settings.cooldown_ns(repeats)
    until_ns = max(state.cooldown_until_ns, *(one.last_bad_ns + cooldown_ns for one in causes if one.latched), 0)
    lately = sum(now - at < ns(settings.escalate_window_seconds) for at in state.engagements_ns)
    waits = any(one.latched and _waited(one, before) and not _waited(one, settings) for one in again.causes)
    escalates = not state.escalated and lately >= settings.escalate_after_engagements
    effects = [Effect("latched", f"{one.reason} (by settings that have changed)", one.kind) for one in enough]
    if escalates:
        effects.append(_escalation(settings))
    elif waits and not state.escalated:
        effects.append(Effect("escalated", "only a person could release it before the settings changed, and still can"))
    engaged = replace(
        again,
        causes=causes,
        repeats=repeats,
        engagement=state.engagement + bool(enough),
        cooldown_until_ns=until_ns,
        escalated=state.escalated or escalates or waits,
    )
    return engaged, tuple(effects)


def _still_half_open(state: BreakerState, before: BreakerSettings, now: int, settings: BreakerSettings) -> Outcome:
    """Half-open stays half-open, unless a cause that could recover by itself waits for a person now."""
    waiting = [cause for cause in state.causes if _waited(cause, settings) and not _waited(cause, before)]
    if not waiting:
        return replace(state, probes_left=min(state.probes_left, settings.half_open_probes)), ()
    until_ns = max(state.cooldown_until_ns, now + settings.cooldown_ns(state.repeats))
    engaged = replace(
        state,
        mode=BreakerMode.ENGAGED,
        engagement=state.engagement + 1,
        cooldown_until_ns=until_ns,
        probes_left=0,
    )
    reason = "it was recovering by itself, which the settings allow no more"
    return engaged, tuple(Effect("latched", f"{cause.reason} ({reason})", cause.kind) for cause in waiting)


def _waited(cause: Cause, settings: BreakerSettings) -> bool:
    """Whether a cause waits for a person."""
    return not settings.is_transient(cause.kind)


def _is_name(actor: object) -> bool:
    return isinstance(actor, str) and bool(actor.strip())


def _escalation(settings: BreakerSettings) -> Effect:
    return Effect(
        "escalated",
        f"{settings.escalate_after_engagements} engagements within {settings.escalate_window_seconds:g} s: "
        "only a person releases",
    )


def _sorted(causes: tuple[Cause, ...]) -> tuple[Cause, ...]:
    return tuple(sorted(causes, key=lambda cause: cause.kind.value))


def _reasons(state: BreakerState) -> str:
    return "; ".join(f"{cause.kind}: {cause.reason}" for cause in state.causes)


def _short(reason: str) -> str:
    text = writable_text(str(reason))
    return text if len(text) <= REASON_MAX_CHARACTERS else text[: REASON_MAX_CHARACTERS - 3] + "..."
