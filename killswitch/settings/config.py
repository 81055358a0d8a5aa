"""Settings: one YAML file, environment variables over it, command-line options over both.

Every fault is one sentence with its place, all faults are told at once, and nothing is adjusted silently: a setting
that breaks a timing inequality keeps a process from starting. What an operator does to stop trading needs the cluster
and the store alone: there a fault elsewhere is told and stops nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from killswitch.core.permit import MAX_CLOCK_RATE_RATIO, Timing, timing_faults
from killswitch.settings.environment import read_environment
from killswitch.settings.section import NodeLimits, Section, leaves, section_at, sentences_error
from killswitch.settings.settings_file import (
    Fault,
    FileValues,
    Places,
    SettingsFileError,
    Where,
    faults_of,
    meant,
    read_values,
)

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
CLUSTER_IN_PATH: Final = "{cluster}"
COMMAND_LINE: Final = "command line"

ConfigError = SettingsFileError
"""The name of before."""


class TimingSettings(Section):
    """Durations in milliseconds; the inequalities between them are explained in docs/guarantees.md."""

    request_timeout_ms: int = Field(400, description="Time of one call to the store.")
    renew_every_ms: int = Field(500, description="How often a node renews its permit by a linearizable read.")
    permit_ttl_ms: int = Field(2_000, description="How long a permit lasts, from before its read was sent.")
    lease_ttl_ms: int = Field(6_000, description="How long the store keeps a node's key after its last sign of life.")
    leader_deadline_ms: int = Field(4_000, description="How long a leader acts after its last successful keep-alive.")
    backoff_cap_ms: int = Field(1_000, description="Longest pause between two attempts to reconnect.")
    clock_rate_ratio: float = Field(1.05, description="How much faster one clock may run than another.")

    def to_core(self) -> Timing:
        """Return the timing as the core knows it."""
        return Timing(**self.model_dump())

    def faults(self) -> list[str]:
        """Return the inequalities that do not hold."""
        return timing_faults(self.to_core())


def _only_the_cluster(path: str) -> str:
    """Refuse a name in braces that nothing stands in for, such as one that a template left behind."""
    if re.search(r"[{}]", path.replace(CLUSTER_IN_PATH, "")):
        raise PydanticCustomError("braces", "{text}", {"text": f"Only {CLUSTER_IN_PATH} may stand in braces"})
    return path


ClusterPath = Annotated[str, AfterValidator(_only_the_cluster)]
"""A path in which ``{cluster}`` stands for the name of the cluster."""


class AgentSettings(Section):
    """The agent on a node."""

    gate: ClusterPath = Field("/dev/shm/killswitch/{cluster}/gate", description="The gate page.")  # noqa: S108 - shared memory
    link: ClusterPath = Field("/run/killswitch/{cluster}/agent.sock", description="Unix socket for the node's routers.")
    state_dir: ClusterPath = Field("/var/lib/killswitch/{cluster}", description="The journal of flags seen.")
    http_host: str = Field("127.0.0.1", description="Address of /metrics, /healthz and /readyz.")
    http_port: int = Field(9464, ge=0, le=65_535, description="Port number; 0 takes a free one and logs it.")
    report_min_interval_ms: PositiveInt = Field(50, description="At most one report in this time: 20 a second.")
    report_max_interval_ms: PositiveInt = Field(1_000, description="At least one report in this time.")
    freeze_scope: Literal["global", "node", "symbol"] = Field(
        "global", description="What a freeze by a monitor of this node covers."
    )
    limits: NodeLimits = Field(default_factory=NodeLimits, description="The node's own monitor.")
    risk_limits: ClusterPath | None = Field(
        None,
        description="File of the risk limits (config/risk_limits.yaml), instead of limits; followed as it changes.",
    )
    risk_rules: ClusterPath | None = Field(
        None, description="File of exposure and policy (config/risk_rules.yaml); needs risk_limits."
    )

    def faults(self) -> list[str]:
        """Return what does not fit together: the intervals of reports, and limits that stand in two places."""
        faults = []
        if self.report_min_interval_ms > self.report_max_interval_ms:
            faults.append(
                f"report_min_interval_ms ({self.report_min_interval_ms}) must be at most report_max_interval_ms "
                f"({self.report_max_interval_ms})"
            )
        if self.risk_limits is not None and self.limits != NodeLimits():
            faults.append("limits: stand in the file of risk_limits too (its section orders); write them there alone")
        if self.risk_rules is not None and self.risk_limits is None:
            faults.append("risk_rules: needs risk_limits, whose initial_balance_usd its percentages are of")
        return faults

    def in_cluster(self, cluster: str) -> AgentSettings:
        """Return the settings with the name of the cluster in their paths."""
        paths = {name: getattr(self, name) for name in ("gate", "link", "state_dir", "risk_limits", "risk_rules")}
        named = {name: path.replace(CLUSTER_IN_PATH, cluster) for name, path in paths.items() if path is not None}
        return self.model_copy(update=named)


class MoneyRule(Section):
    """A rule on a figure in USD."""

    warning_usd: PositiveFloat | None = Field(None, description="Warn from here on.")
    hard_usd: PositiveFloat | None = Field(None, description="Freeze from here on.")
    mode: Literal["frozen", "reduce-only"] = Field("frozen", description="How far the freeze restricts.")


class CountRule(Section):
    """A rule on a number of nodes."""

    warning_nodes: PositiveInt | None = Field(None, description="Count. Warn from this many nodes on.")
    hard_nodes: PositiveInt | None = Field(None, description="Count. Freeze from this many nodes on.")
    mode: Literal["frozen", "reduce-only"] = Field("frozen", description="How far the freeze restricts.")


class StaleRule(Section):
    """A rule on the age of the oldest report of a live node."""

    warning_ms: PositiveInt | None = Field(None, description="Warn when a live node's report is this old.")
    hard_ms: PositiveInt | None = Field(None, description="Freeze when a live node's report is this old.")
    mode: Literal["frozen", "reduce-only"] = Field("frozen", description="How far the freeze restricts.")


class RuleSettings(Section):
    """The coordinator's rules; each is off unless one of its levels is set."""

    gross_notional: MoneyRule = Field(default_factory=MoneyRule, description="Sum of absolute positions, all nodes.")
    net_notional: MoneyRule = Field(default_factory=MoneyRule, description="Absolute value of the signed sum.")
    symbol_notional: MoneyRule = Field(default_factory=MoneyRule, description="Absolute net position in one symbol.")
    drawdown: MoneyRule = Field(default_factory=MoneyRule, description="Fall of the cluster's P&L from its peak.")
    lost_nodes: CountRule = Field(default_factory=CountRule, description="Registered nodes without a live agent.")
    stale_reports: StaleRule = Field(default_factory=StaleRule, description="Age of the oldest live node's report.")

    def faults(self) -> list[str]:
        """Return the rules whose levels stand in the wrong order."""
        faults = []
        for name in type(self).model_fields:
            levels = getattr(self, name).model_dump()
            warning = next(value for key, value in levels.items() if key.startswith("warning"))
            hard = next(value for key, value in levels.items() if key.startswith("hard"))
            if warning is not None and hard is not None and warning > hard:
                faults.append(f"{name}: the warning level ({warning:g}) must not be above the hard level ({hard:g})")
        return faults


class CoordinatorSettings(Section):
    """The coordinator."""

    http_host: str = Field("127.0.0.1", description="Address of /metrics, /healthz and /readyz.")
    http_port: int = Field(9465, ge=0, le=65_535, description="Port number; 0 takes a free one and logs it.")
    evaluate_every_ms: PositiveInt = Field(200, description="How often the leader adds up and applies its rules.")
    rules: RuleSettings = Field(default_factory=RuleSettings)


class Settings(Section):
    """Everything that can be set."""

    cluster: str = Field("default", pattern=NAME_PATTERN, description="Name of the cluster.")
    store: str | list[str] = Field(
        "etcd://127.0.0.1:2379", description="URL of the store, or several: a freeze in any of them freezes."
    )
    timing: TimingSettings = Field(default_factory=TimingSettings)
    agent: AgentSettings = Field(default_factory=AgentSettings)
    coordinator: CoordinatorSettings = Field(default_factory=CoordinatorSettings)

    @property
    def stores(self) -> tuple[str, ...]:
        """The URL of each store; in the environment they are separated by spaces."""
        return tuple(self.store.split()) if isinstance(self.store, str) else tuple(self.store)

    @field_validator("store")
    @classmethod
    def _some_stores_each_once(cls, value: str | list[str]) -> str | list[str]:
        urls = value.split() if isinstance(value, str) else value
        faults = [] if urls else ["names no store"]
        if len(set(urls)) < len(urls):
            faults.append("names one store twice")  # which one is not said: a URL may hold a password
        if faults:
            raise sentences_error(faults)
        return value


def load_settings(path: Path | None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings.

    Args:
        path: the YAML file, ``None`` for built-in defaults.
        overrides: values from the command line; they win over the environment, and that over the file.

    Raises:
        SettingsFileError: with one sentence for each fault.
    """
    written = _Written(path, overrides or {})
    settings, found = written.settings()
    faults = [*written.of_environment, *written.twice, *found]
    if settings is None or faults:
        raise SettingsFileError([fault.sentence for fault in faults])
    return settings


def load_needed_settings(
    path: Path | None, overrides: Mapping[str, Any] | None, needed: Collection[str]
) -> tuple[Settings, list[str]]:
    """Read the settings for a command that needs some of them; a fault of the others is told and stops nothing.

    Args:
        path: as for :func:`load_settings`.
        overrides: as there.
        needed: what the command cannot do without: ``cluster`` and ``store``, for a freeze.

    Returns:
        The settings, every other section that has a fault as it is built in, but for the clock rate: of a timing with a
        fault it is the largest that any may have. And one sentence for each thing that is wrong.

    Raises:
        SettingsFileError: something that is needed is wrong, or may be: the file cannot be read, or an unknown name
            resembles it and it stands nowhere else. With ``clustr: prod`` alone, *default* would be frozen.
    """
    written = _Written(path, overrides or {}, needed)
    settings, found = written.settings()
    wrong = (*written.of_environment, *written.twice, *found)
    sentences = [*written.unread, *(fault.sentence for fault in wrong)]
    if written.leave_open(found, needed):
        raise SettingsFileError(sentences)
    left_out = {str(fault.where[0]) for fault in (*written.twice, *found)} - set(needed)
    if left_out:
        settings, found = written.settings(without=left_out)
    if settings is None:
        raise SettingsFileError([*sentences, *(fault.sentence for fault in found)])
    built_in = [name for name in Settings.model_fields if name in left_out or (written.unread and name not in needed)]
    if built_in:
        sentences.append(f"this does not stop the command, which takes {', '.join(built_in)} as built in")
    if written.unread or any(_part_meant(fault.where) == "timing" for fault in wrong):
        # What the nodes' clocks may do is not known, so a permit counts as run out only when any would have.
        timing = settings.timing.model_copy(update={"clock_rate_ratio": MAX_CLOCK_RATE_RATIO})
        settings = settings.model_copy(update={"timing": timing})
    return settings, sentences


class _Written:
    """What file, environment and command line say, and where each of it stands.

    Args:
        path: the file.
        options: what the command line says.
        needed: a file that cannot be read stops nothing where all of these stand in the environment or on the command
            line; ``None``: it always does.

    Raises:
        SettingsFileError: the file cannot be read.

    Attributes:
        of_environment: what is wrong with the variables.
        twice: names that the file gives twice.
        unread: why the file could not be read.
    """

    def __init__(self, path: Path | None, options: Mapping[str, Any], needed: Collection[str] | None = None) -> None:
        environment = read_environment(Settings, os.environ)
        self._over_file = _over(environment.values, options)
        self.unread: tuple[str, ...] = ()
        file = FileValues(Path(), {}, {}, ())
        try:
            if path is not None:
                file = read_values(path, may_wait=True)
        except SettingsFileError as error:
            if needed is None or not self._over_file.keys() >= set(needed):
                raise
            self.unread = tuple(error.faults)
        self.of_environment, self.twice = environment.faults, file.twice
        self._values = _over({str(name): value for name, value in file.values.items()}, self._over_file)
        # A variable of a section stands behind what the file has in place of the section (see _over).
        hidden = {where for where, _ in leaves(self._values)} - {where for where, _ in leaves(environment.values)}
        of_file = file.places().of
        stands: dict[Where, str] = {**of_file, **environment.variables}
        stands.update((where, of_file[where]) for where in hidden if where in of_file)
        stands.update((where, COMMAND_LINE) for where, _ in leaves(options))
        self._places = Places("settings" if path is None else str(path), stands)

    def settings(self, without: Collection[str] = ()) -> tuple[Settings | None, list[Fault]]:
        """Return the settings, ``None`` when something is wrong, and what.

        Args:
            without: names to leave out, as if nobody had written them.
        """
        values = {name: value for name, value in self._values.items() if name not in without}
        try:
            return Settings.model_validate(values), []
        except ValidationError as error:
            return None, faults_of(error, Settings, self._places, hidden={"store"})

    def leave_open(self, found: Sequence[Fault], needed: Collection[str]) -> bool:
        """Tell whether the faults leave it open what one of the needed settings is."""
        overridden = {name for name in self._over_file if section_at(Settings, (name,)) is None}
        return (
            any(fault.where[0] in set(needed) - overridden for fault in self.twice)
            or any(fault.where[0] in needed for fault in found)
            or any(self._may_mean(fault.where, needed) for fault in (*self.of_environment, *found))
        )

    def _may_mean(self, where: Where, needed: Collection[str]) -> bool:
        """Tell whether a name that nobody knows may be a needed one, which stands nowhere else."""
        part = _part_meant(where)
        return part in needed and (len(where) > 1 or part not in self._values)


def _part_meant(where: Where) -> str | None:
    """Return the outermost setting that a place is in, or that its unknown name resembles."""
    name = str(where[0])
    return name if name in Settings.model_fields else meant(name, list(Settings.model_fields))


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay values over others, section by section; what stands where a section belongs stays, and is a fault."""
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name)
        if not isinstance(value, Mapping) or name not in merged:
            merged[name] = value
        elif isinstance(under, Mapping):
            merged[name] = _over(under, value)
    return merged
