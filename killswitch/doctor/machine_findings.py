"""Judges this machine: its clocks, its gate page, its directories and what the program was installed by."""

from __future__ import annotations

from killswitch.core.permit import Timing
from killswitch.doctor.measurements import DirectorySeen, GateSeen, InstallationSeen, MachineSeen
from killswitch.doctor.verdict import Finding, Severity

OK, NOTE, WARNING, FAULT = Severity.OK, Severity.NOTE, Severity.WARNING, Severity.FAULT

SLOW_CLOCKSOURCES = frozenset({"hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit"})
"""Sources for which the kernel is entered at each reading: a microsecond and more, where others take 30 ns."""

STEP_MS = 50.0
"""A wall clock that moves this much on its own was set; slewing moves it by half a millisecond a second."""

SPACE_MIN_BYTES = 1024**2

SILENT_RENEWALS = 3
"""A writer that has not written for so many renewals is in trouble."""


def machine_findings(seen: MachineSeen, cluster: str, timing: Timing) -> list[Finding]:
    """Judge this machine; ``cluster`` is the one that the settings name."""
    return [
        *_clock_findings(seen),
        *gate_findings(seen.gate, cluster, timing),
        *_directory_findings("memory", "the gate page", seen.shared_memory),
        *_directory_findings("journal", "the journal", seen.journal),
        *_installation_findings(seen.installation),
    ]


def _clock_findings(seen: MachineSeen) -> list[Finding]:
    found = []
    if seen.clock_note:
        found.append(Finding(WARNING, "clock", seen.clock_note))
    if seen.clocksource in SLOW_CLOCKSOURCES:
        what = f"the kernel reads the time from {seen.clocksource}"
        why = "every check of a gate reads the clock, and this one is slow"
        found.append(Finding(WARNING, "clock", what, why, "see /sys/devices/system/clocksource for a faster one"))
    elif not seen.clock_note:
        source = f", read from {seen.clocksource}" if seen.clocksource else ""
        found.append(Finding(OK, "clock", f"deadlines are kept on {seen.clock_name}{source}"))
    if abs(seen.stepped_ms) > STEP_MS:
        what = f"the wall clock was stepped by {seen.stepped_ms:.0f} ms within {seen.watched_ms:.0f} ms"
        found.append(Finding(NOTE, "clock", what, "no deadline depends on it, but times in the history do"))
    if seen.time_synchronised is False:
        what = "nobody tells this machine the right time (NTP)"
        found.append(Finding(NOTE, "clock", what, "no deadline depends on it, but times in the history do"))
    return found


def gate_findings(seen: GateSeen, cluster: str, timing: Timing) -> list[Finding]:
    """Judge the gate page; one that nobody asked for may be absent."""
    if not seen.present and not seen.asked_for:
        what = f"there is no gate page at {seen.path}"
        return [Finding(NOTE, "gate", what, "no agent of this cluster has run on this machine")]
    if seen.error:
        return [Finding(FAULT, "gate", seen.error, "routers that use it send nothing")]
    found = []
    who = f"node {seen.node}"
    if seen.cluster != cluster:
        what = f"{seen.path} is the gate of {who} of cluster {seen.cluster}, not of cluster {cluster}"
        found.append(Finding(WARNING, "gate", what, "its routers stop for another cluster's freezes"))
    wrote = f"wrote {seen.heartbeat_ms_ago:.0f} ms ago"
    has_permit = seen.permit_ms_left is not None and seen.permit_ms_left > 0
    if has_permit:
        silent = seen.heartbeat_ms_ago > SILENT_RENEWALS * timing.renew_every_ms
        if silent:
            what = f"the agent of {who} (pid {seen.writer_pid}) {wrote}, and renews every {timing.renew_every_ms} ms"
            why = f"its permit has {seen.permit_ms_left:.0f} ms left, then the gate closes by itself"
            found.append(Finding(WARNING, "gate", what, why, "look at that agent and at the store"))
        elif not seen.writer_alive:
            what = f"the agent of {who} {wrote}, but there is no process {seen.writer_pid} here"
            found.append(Finding(NOTE, "gate", what, "it has just ended, or counts processes on its own (a container)"))
        severity = OK if seen.mode == "ACTIVE" else NOTE
        permit = f"permit {seen.permit_ms_left:.0f} ms left"
        what = f"{who}: {seen.mode} at epoch {seen.epoch}, {permit}, its agent (pid {seen.writer_pid}) {wrote}"
        found.append(Finding(severity, "gate", what))
        return found
    permit = "it never had a permit"
    if seen.permit_ms_left is not None:
        permit = f"its permit ran out {-seen.permit_ms_left:.0f} ms ago"
    if seen.writer_alive:
        what = f"the gate of {who} is closed: {permit}, though its agent (pid {seen.writer_pid}) is there and {wrote}"
        do = "look at the agent's log and at the store"
    else:
        what = f"the gate of {who} is closed: {permit}, and its agent (pid {seen.writer_pid}) is gone"
        do = "start the agent of this node again"
    found.append(Finding(FAULT, "gate", what, "its routers send nothing but cancels", do))
    return found


def _directory_findings(topic: str, what_for: str, seen: DirectorySeen) -> list[Finding]:
    if seen.read_only:
        what = f"{seen.path}, where {what_for} belongs, is on a file system that takes no writes"
        return [Finding(FAULT, topic, what, "no agent can open a gate here", "mount it for writing")]
    if not seen.writable:
        what = f"this user may not write {what_for} in {seen.path}"
        why = "an agent of this user could not start; one of another user may"
        return [Finding(NOTE, topic, what, why)]
    if seen.free_bytes is not None and seen.free_bytes < SPACE_MIN_BYTES:
        what = f"{seen.path}, where {what_for} belongs, has {seen.free_bytes} bytes left"
        return [Finding(WARNING, topic, what, "an agent that cannot write keeps its gate closed", "make room")]
    free = "" if seen.free_bytes is None else f" ({seen.free_bytes / 1024**2:.0f} MiB free)"
    made = "" if seen.exists else ", which an agent makes when it starts"
    return [Finding(OK, topic, f"{what_for} can be written in {seen.path}{made}{free}")]


def _installation_findings(seen: InstallationSeen) -> list[Finding]:
    if not seen.others:
        source = f"{seen.distribution} is installed" if seen.distribution else "no distribution is installed"
        return [Finding(OK, "install", f"{source}; it runs from {seen.path}, and nothing else owns a file of it")]
    why = "of two that own one name the last one installed is what routers import and operators start"
    return [
        Finding(
            FAULT,
            "install",
            f"the distribution {other} owns {file}, which is a name of killswitch-cluster",
            why,
            f"`pip uninstall {other.split()[0]}`, then `pip install --force-reinstall --no-deps killswitch-cluster`",
        )
        for other, file in seen.others.items()
    ]
