"""Settings: one YAML file, environment variables over it, command-line options over both.

Every fault is one sentence, all faults are told at once, and nothing is adjusted silently: a setting that breaks a
timing inequality keeps a process from starting.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from killswitch.core.permit import Timing, timing_faults

ENV_PREFIX = "KILLSWITCH_"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class ConfigError(Exception):
    """The settings cannot be used; ``faults`` holds one sentence for each thing that is wrong."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


_FAULTS = "killswitch_faults"
"""Type of the error by which a section tells faults that are whole sentences already."""


class _Section(BaseModel):
    # An infinite limit would be one that is never reached, without saying that it is off.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_yes_or_no(cls, value: Any) -> Any:
        """Refuse ``true`` where pydantic would read 1: no setting here is a yes or no."""
        if isinstance(value, bool):
            raise PydanticCustomError("not_a_switch", "Input should be a number or a text")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        faults = self.faults()
        if faults:
            raise PydanticCustomError(_FAULTS, "{text}", {"faults": faults, "text": "; ".join(faults)})
        return self

    def faults(self) -> list[str]:
        """Return one sentence for each thing that is wrong between settings that are sound one by one."""
        return []


class TimingSettings(_Section):
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


class NodeLimits(_Section):
    """Limits of the node's own RuntimeRiskMonitor; an absent one is off."""

    max_inventory_usd_per_symbol: PositiveFloat | None = Field(None, description="Per symbol, in USD; soft.")
    max_total_notional_usd: PositiveFloat | None = Field(None, description="Over all symbols, in USD; soft.")
    edge_freeze_threshold_bps: FiniteFloat | None = Field(
        None, description="A net edge below this many basis points freezes."
    )


class AgentSettings(_Section):
    """The agent on a node."""

    gate: str = Field("/dev/shm/killswitch/{cluster}/gate", description="The gate page.")  # noqa: S108 - shared memory
    link: str = Field("/run/killswitch/{cluster}/agent.sock", description="Unix socket for the node's routers.")
    state_dir: str = Field("/var/lib/killswitch/{cluster}", description="The journal of flags seen.")
    http_host: str = Field("127.0.0.1", description="Address of /metrics, /healthz and /readyz.")
    http_port: int = Field(9464, ge=0, le=65_535, description="Port number; 0 takes a free one and logs it.")
    report_min_interval_ms: PositiveInt = Field(50, description="At most one report in this time: 20 a second.")
    report_max_interval_ms: PositiveInt = Field(1_000, description="At least one report in this time.")
    freeze_scope: Literal["global", "node", "symbol"] = Field(
        "global", description="What a freeze by a monitor of this node covers."
    )
    limits: NodeLimits = Field(default_factory=NodeLimits, description="The node's own monitor.")
    risk_limits: str | None = Field(
        None,
        description="File of the risk limits (config/risk_limits.yaml), instead of limits; followed as it changes.",
    )
    risk_rules: str | None = Field(
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


class MoneyRule(_Section):
    """A rule on a figure in USD."""

    warning_usd: PositiveFloat | None = Field(None, description="Warn from here on.")
    hard_usd: PositiveFloat | None = Field(None, description="Freeze from here on.")
    mode: Literal["frozen", "reduce-only"] = Field("frozen", description="How far the freeze restricts.")


class CountRule(_Section):
    """A rule on a number of nodes."""

    warning_nodes: PositiveInt | None = Field(None, description="Count. Warn from this many nodes on.")
    hard_nodes: PositiveInt | None = Field(None, description="Count. Freeze from this many nodes on.")
    mode: Literal["frozen", "reduce-only"] = Field("frozen", description="How far the freeze restricts.")


class StaleRule(_Section):
    """A rule on the age of the oldest report of a live node."""

    warning_ms: PositiveInt | None = Field(None, description="Warn when a live node's report is this old.")
    hard_ms: PositiveInt | None = Field(None, description="Freeze when a live node's report is this old.")
    mode: Literal["frozen", "reduce-only"] = Field("frozen", description="How far the freeze restricts.")


class RuleSettings(_Section):
    """The coordinator's rules; each is off unless one of its levels is set."""

    gross_notional: MoneyRule = Field(default_factory=MoneyRule, description="Sum of absolute positions, all nodes.")
    net_notional: MoneyRule = Field(default_factory=MoneyRule, description="Absolute value of the signed sum.")
    symbol_notional: MoneyRule = Field(default_factory=MoneyRule, description="Absolute net position in one symbol.")
    drawdown: MoneyRule = Field(default_factory=MoneyRule, description="Fall of the cluster's P&L from its peak.")
    lost_nodes: CountRule = Field(default_factory=CountRule, description="Registered nodes without a live agent.")
    stale_reports: StaleRule = Field(default_factory=StaleRule, description="Age of the oldest live node's report.")

    def faults(self) -> list[str]:
        """Return the rules whose levels stand in the wrong order."""
        return _rule_faults(self)


class CoordinatorSettings(_Section):
    """The coordinator."""

    http_host: str = Field("127.0.0.1", description="Address of /metrics, /healthz and /readyz.")
    http_port: int = Field(9465, ge=0, le=65_535, description="Port number; 0 takes a free one and logs it.")
    evaluate_every_ms: PositiveInt = Field(200, description="How often the leader adds up and applies its rules.")
    rules: RuleSettings = Field(default_factory=RuleSettings)


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, env_ignore_empty=True
    )

    cluster: str = Field("default", pattern=NAME_PATTERN, description="Name of the cluster.")
    store: Annotated[str | list[str], NoDecode] = Field(
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
            raise PydanticCustomError(_FAULTS, "{text}", {"faults": faults, "text": "; ".join(faults)})
        return value


def load_settings(path: Path | None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings.

    Args:
        path: the YAML file, ``None`` for built-in defaults.
        overrides: values from the command line; they win over the environment, and that over the file.

    Raises:
        ConfigError: with one sentence for each fault.
    """
    file_values = {} if path is None else _read_yaml(path)
    origin = str(path) if path is not None else "settings"

    class _FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, _Values(settings_cls, file_values)

    try:
        return _FromFile(**dict(overrides or {}))
    except ValidationError as error:
        raise ConfigError([text for fault in error.errors() for text in _sentences(origin, fault)]) from error
    except SettingsError as error:
        raise ConfigError([f"environment: {error}; write JSON, or one variable for each setting"]) from error


class _Values(PydanticBaseSettingsSource):
    """The YAML file as a source of settings."""

    def __init__(self, settings_cls: type[BaseSettings], values: dict[str, Any]) -> None:
        super().__init__(settings_cls)
        self._values = values

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._values


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read ({error.strerror})"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: is not YAML ({' '.join(str(error).split())})"]) from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError([f"{path}: must hold settings by name, not a {type(loaded).__name__}"])
    strange = [name for name in loaded if not isinstance(name, str)]
    if strange:
        raise ConfigError([f"{path}: {name}: there is no such setting" for name in strange])
    return loaded


def _sentences(origin: str, fault: Any) -> list[str]:
    """Turn one fault of pydantic's into sentences: where, what, and what may have been meant."""
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == _FAULTS:
        return [f"{origin}: {where}: {text}" for text in fault["ctx"]["faults"]]
    return [_sentence(origin, where, fault)]


def _sentence(origin: str, where: str, fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        meant = difflib.get_close_matches(str(fault["loc"][-1]), _names_in(fault["loc"][:-1]), n=1, cutoff=0.5)
        hint = f"; did you mean {meant[0]!r}?" if meant else ""
        return f"{origin}: {where}: there is no such setting{hint}"
    # The URL of a store may hold a password.
    shown = "" if fault["loc"][:1] == ("store",) else f", and it is {fault['input']!r}"
    return f"{origin}: {where}: {fault['msg'][:1].lower()}{fault['msg'][1:]}{shown}"


def _names_in(section: tuple[Any, ...]) -> list[str]:
    model: Any = Settings
    for part in section:
        field = model.model_fields.get(part)
        model = field.annotation if field is not None else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
    return list(model.model_fields)


def _rule_faults(rules: RuleSettings) -> list[str]:
    faults = []
    for name in type(rules).model_fields:
        levels = {key: value for key, value in getattr(rules, name).model_dump().items() if key != "mode"}
        warning = next(value for key, value in levels.items() if key.startswith("warning"))
        hard = next(value for key, value in levels.items() if key.startswith("hard"))
        if warning is not None and hard is not None and warning > hard:
            faults.append(f"{name}: the warning level ({warning:g}) must not be above the hard level ({hard:g})")
    return faults
