"""Settings: what is wrong is told, all of it at once, one sentence each; and what ships is what is built in."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from killswitch.core.permit import Timing, timing_faults
from killswitch.settings.config import ConfigError, Settings, load_settings
from killswitch.settings.environment import ENV_PREFIX, OWN_VARIABLES, read_environment
from killswitch.settings.section import settings_schema

SHIPPED = Path(__file__).resolve().parents[3] / "config"
RULES = ["gross_notional", "net_notional", "symbol_notional", "drawdown"]

SOURCES = {".py", ".sh", ".md", ".yaml", ".yml", ".toml", ".h", ""}
Load = Callable[..., Settings]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have settings in the environment."""
    for name in list(os.environ):
        if name.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write a file and load it."""

    def write_and_load(text: str, **overrides: Any) -> Settings:
        path = tmp_path / "k.yaml"
        path.write_text(text, encoding="utf-8")
        return load_settings(path, overrides)

    return write_and_load


@pytest.fixture
def faults(load: Load, tmp_path: Path) -> Callable[..., list[str]]:
    """Load what cannot be loaded; the sentences without path and line, which each must begin with."""

    def told(text: str, **overrides: Any) -> list[str]:
        with pytest.raises(ConfigError) as refused:
            load(text, **overrides)
        assert str(refused.value) == "\n".join(refused.value.faults)
        path, lines = re.escape(str(tmp_path / "k.yaml")), len(text.splitlines())
        found = [re.fullmatch(rf"{path}:(\d+): (.*)", fault) for fault in refused.value.faults]
        assert all(one is not None and int(one[1]) <= lines for one in found)
        return [one[2] for one in found if one is not None]

    return told


Faults = Callable[..., list[str]]


def values(loaded: Settings) -> dict[str, Any]:
    """Settings as plain values."""
    return loaded.model_dump(mode="json")


# -- what ships ------------------------------------------------------------------------------------------------------


def test_the_file_that_ships_holds_every_setting_with_its_default() -> None:
    """The file that ships equals the built-in defaults and leaves nothing out, so that copying it changes nothing."""
    assert values(load_settings(SHIPPED / "killswitch.yaml")) == values(load_settings(None))
    in_file = yaml.safe_load((SHIPPED / "killswitch.yaml").read_text(encoding="utf-8"))
    assert in_file == values(load_settings(None))


def test_every_setting_of_the_file_that_ships_has_a_comment() -> None:
    """Every setting of the file that ships is explained above it; the levels of a rule above the rule."""
    lines = (SHIPPED / "killswitch.yaml").read_text(encoding="utf-8").splitlines()
    unexplained = [
        line.strip()
        for before, line in zip(["", *lines], lines, strict=False)
        if ":" in line
        and not line.lstrip().startswith("#")
        and not before.lstrip().startswith("#")
        and not line.lstrip().startswith(("warning_", "hard_", "mode:"))
    ]
    assert unexplained == []


def test_the_schema_that_ships_is_what_the_code_produces() -> None:
    """The schema that ships is the output of `killswitch config schema`; write it anew after a change of settings."""
    shipped = (SHIPPED / "killswitch.schema.json").read_text(encoding="utf-8")
    assert shipped == json.dumps(settings_schema(Settings), indent=2) + "\n"


def test_the_built_in_timing_is_the_one_that_the_promises_are_checked_with() -> None:
    """BOUNDED STOP: the defaults of the settings are the defaults of the core, and sound."""
    assert load_settings(None).timing.to_core() == Timing()
    assert timing_faults(Timing()) == []


# -- where a value comes from ----------------------------------------------------------------------------------------


def test_an_empty_file_is_all_defaults(load: Load) -> None:
    """A file that says nothing changes nothing."""
    assert values(load("")) == values(load("# only a comment\n")) == values(load_settings(None))


def test_the_environment_wins_over_the_file(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment wins over the file, setting by setting; what it does not name stays as the file says."""
    monkeypatch.setenv("KILLSWITCH_CLUSTER", "from-env")
    monkeypatch.setenv("KILLSWITCH_TIMING__PERMIT_TTL_MS", "1900")
    monkeypatch.setenv("KILLSWITCH_COORDINATOR__RULES__DRAWDOWN__HARD_USD", "5000")
    loaded = load("cluster: from-file\nstore: memory://x\ntiming: {permit_ttl_ms: 1800, lease_ttl_ms: 7000}\n")
    assert (loaded.cluster, loaded.store) == ("from-env", "memory://x")
    assert (loaded.timing.permit_ttl_ms, loaded.timing.lease_ttl_ms) == (1_900, 7_000)
    assert loaded.coordinator.rules.drawdown.hard_usd == 5_000


def test_options_win_over_the_environment(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Command-line options win over the environment, and that over the file."""
    monkeypatch.setenv("KILLSWITCH_CLUSTER", "from-env")
    assert load("cluster: from-file", cluster="from-option").cluster == "from-option"
    assert load("cluster: from-file").cluster == "from-env"


@pytest.mark.parametrize("text", ["timing: fast", "timing:", "timing: [1]"])
def test_what_stands_where_a_section_belongs_is_a_fault_whatever_the_environment_says(
    faults: Faults, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """A variable of a section does not hide that the file's section is none: its author meant something by it."""
    monkeypatch.setenv("KILLSWITCH_TIMING__PERMIT_TTL_MS", "1900")
    (told,) = faults(text)
    assert "timing: input should be a valid dictionary" in told


def test_what_the_file_has_where_a_section_belongs_is_told_by_the_file_and_not_by_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a variable sets the whole section, which is sound: whoever mends it must know where it stands."""
    path = tmp_path / "k.yaml"
    path.write_text("cluster: c\ntiming: fast\n", encoding="utf-8")
    monkeypatch.setenv("KILLSWITCH_TIMING", '{"permit_ttl_ms": 1900}')
    with pytest.raises(ConfigError) as refused:
        load_settings(path)
    (told,) = refused.value.faults
    assert told.startswith(f"{path}:2: timing: input should be a valid dictionary")
    path.write_text("cluster: c\ntiming: {}\n", encoding="utf-8")
    monkeypatch.setenv("KILLSWITCH_TIMING", "5")
    with pytest.raises(ConfigError, match=r"^KILLSWITCH_TIMING: timing: input should be a valid dictionary"):
        load_settings(path)


def test_an_empty_variable_counts_as_unset(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that a service file sets to nothing does not take the file's value away."""
    monkeypatch.setenv("KILLSWITCH_CLUSTER", "")
    assert load("cluster: from-file").cluster == "from-file"


@pytest.mark.parametrize("name", ["KILLSWITCH_CONFIG", "KILLSWITCH_ACTOR"])
def test_variables_of_the_command_are_no_settings(load: Load, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What the command itself reads from the environment is not told as an unknown setting."""
    monkeypatch.setenv(name, "x")
    assert values(load("")) == values(load_settings(None))


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("KILLSWITCH_TIMING__PERMIT_TTL", "2000", "timing.permit_ttl: there is no such setting"),
        ("KILLSWITCH_TIMING__PERMIT_TTL_MS", "2s", "timing.permit_ttl_ms: input should be a valid integer"),
        ("KILLSWITCH_TIMING__PERMIT_TTL_MS", "200", "timing: 3 * renew_every_ms (1500) must be <= permit_ttl_ms (200)"),
        ("KILLSWITCH_TIMING", "{", "KILLSWITCH_TIMING: timing: is no JSON; write JSON, or one variable for each"),
    ],
)
def test_a_fault_in_the_environment_is_told_as_well(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    """A variable with a fault keeps a process from starting with a sentence, never with a traceback."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as refused:
        load_settings(None)
    assert sentence in refused.value.faults[0]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("KILLSWITCH_CLUSTR", "clustr: there is no such setting; did you mean KILLSWITCH_CLUSTER?"),
        (
            "KILLSWITCH_TIMNG__PERMIT_TTL_MS",
            "timng.permit_ttl_ms: there is no such setting; did you mean KILLSWITCH_TIMING__PERMIT_TTL_MS?",
        ),
        ("KILLSWITCH_AGENT_HTTP_PORT", "there is no such setting; did you mean KILLSWITCH_AGENT__HTTP_PORT?"),
        ("KILLSWITCH_CONFG", "there is no such setting; did you mean KILLSWITCH_CONFIG?"),
        ("KILLSWITCH_CLUSTER__NAME", "cluster.name: there is no such setting"),
        ("killswitch_clustr", "clustr: there is no such setting; did you mean KILLSWITCH_CLUSTER?"),
    ],
)
def test_a_variable_that_is_no_setting_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, sentence: str
) -> None:
    """A variable that nobody reads is a limit that does not hold."""
    monkeypatch.setenv(name, "1900")
    with pytest.raises(ConfigError) as refused:
        load_settings(None)
    (told,) = refused.value.faults
    assert told.startswith(f"{name}: ")
    assert sentence in told


def test_what_kubernetes_says_of_its_services_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each service of a namespace is told to every pod there, and one may well be named after what it is."""
    for service in ("KILLSWITCH", "KILLSWITCH_ETCD"):
        for what in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_CLIENT", "PORT", "PORT_2379_TCP_ADDR"):
            monkeypatch.setenv(f"{service}_{what}", "10.0.0.1")
    assert load_settings(None) == Settings()


def test_every_variable_that_is_named_anywhere_is_a_setting_or_known_by_what_it_is_for() -> None:
    """A switch of the tests or the command that is in no list would keep every process from starting."""
    no_variables = {"KILLSWITCH_GATE_H", "KILLSWITCH_TEST_", "KILLSWITCH_COORDINATOR__RULES__"}
    misspelt_here = (Path(__file__).parent, Path(__file__).parents[1] / "cli" / "test_settings_faults.py")
    places = [*SHIPPED.parent.glob("*.*"), SHIPPED.parent / "Makefile"]
    for folder in (".ci", "killswitch", "agents", "coordinator", "config", "deploy", "docs", "tests"):
        places += (SHIPPED.parent / folder).rglob("*")
    texts = [
        file.read_text(encoding="utf-8", errors="replace")
        for file in places
        if file.suffix in SOURCES and file.is_file() and not any(file.is_relative_to(one) for one in misspelt_here)
    ]
    named = {name for text in texts for name in re.findall(r"\bKILLSWITCH_[A-Z0-9_]+\b(?![{*<])", text)}
    assert named >= {"KILLSWITCH_CONFIG", "KILLSWITCH_STORE", "KILLSWITCH_REQUIRE_DOCKER"}
    switches = dict.fromkeys(named - OWN_VARIABLES.keys() - no_variables, "{}")
    assert [fault.sentence for fault in read_environment(Settings, switches).faults] == []
    assert [name for name in switches if name.startswith("KILLSWITCH_TEST_")] == []


# -- what stands twice, what stands in braces ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("timing: {renew_every_ms: 400}\ntiming: {}", ["2: timing: is given twice"]),
        (
            "coordinator:\n  rules:\n    drawdown: {hard_usd: 3000}\n    drawdown: {warning_usd: 1000}\n",
            ["4: coordinator.rules.drawdown: is given twice"],
        ),
        ("cluster: a\ncluster: a\nclustr: b", ["2: cluster: is given twice", "3: clustr: there is no such setting"]),
    ],
)
def test_a_name_that_is_given_twice_is_refused_with_path_and_line(tmp_path: Path, text: str, told: list[str]) -> None:
    """Of two sections YAML takes the second in silence, and a hard level that stood in the first is gone."""
    path = tmp_path / "k.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_settings(path)
    assert len(refused.value.faults) == len(told)
    assert all(fault.startswith(f"{path}:{one}") for fault, one in zip(refused.value.faults, told, strict=True))


def test_what_a_merge_key_brings_may_be_written_otherwise(load: Load) -> None:
    """A setting that stands beside ``<<`` and in what it brings is given once: here."""
    text = "coordinator:\n  rules:\n    gross_notional: &one {warning_usd: 5, hard_usd: 9}\n"
    rules = load(f"{text}    net_notional: {{<<: *one, hard_usd: 7}}\n").coordinator.rules
    assert (rules.net_notional.warning_usd, rules.net_notional.hard_usd) == (5, 7)
    assert rules.gross_notional.hard_usd == 9


@pytest.mark.parametrize("name", ["gate", "link", "state_dir", "risk_limits", "risk_rules"])
def test_only_the_cluster_may_stand_in_braces_in_a_path(faults: Faults, load: Load, name: str) -> None:
    """A template that nobody filled in leaves its braces behind; they are no directory that anybody meant."""
    others = "" if name == "risk_limits" else ", risk_limits: l"
    for path in (
        "/x/{a}/y",
        "/x/${POD_NAME}",
        "/x/{}",
        "/x/{",
        "/x/}",
        "/x/{{cluster}}",
        "/x/{cluster!r}",
        "/{Cluster}",
    ):
        (told,) = faults(f"agent: {{{name}: '{path}'{others}}}")
        assert told == f"agent.{name}: only {{cluster}} may stand in braces, and it is {path!r}"
    loaded = load(f"agent: {{{name}: '/x/{{cluster}}/y-{{cluster}}'{others}}}", cluster="prod")
    assert getattr(loaded.agent.in_cluster(loaded.cluster), name) == "/x/prod/y-prod"


@pytest.mark.parametrize(
    ("variables", "options", "place"),
    [
        ({"KILLSWITCH_AGENT__HTTP_PORT": "70000"}, {}, "KILLSWITCH_AGENT__HTTP_PORT: agent.http_port: "),
        ({"KILLSWITCH_AGENT": '{"http_port": 70000}'}, {}, "KILLSWITCH_AGENT: agent.http_port: "),
        ({}, {"agent": {"http_port": 70000}}, "command line: agent.http_port: "),
        (
            {"KILLSWITCH_TIMING__PERMIT_TTL_MS": "200"}, {},
            "KILLSWITCH_TIMING__PERMIT_TTL_MS: timing: 3 * renew_every_ms (1500) must be <= permit_ttl_ms (200)",
        ),
    ],
)  # fmt: skip
def test_a_fault_names_the_place_that_its_value_comes_from(
    load: Load, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], options: dict[str, Any], place: str
) -> None:
    """Whoever reads the sentence finds what to change, wherever it stands."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as refused:
        load("agent: {http_port: 1}", **options)
    assert refused.value.faults[0].startswith(place)


# -- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("clustr: a", "clustr: there is no such setting; did you mean 'cluster'?"),
        ("timing: {permit_ttl: 2}", "timing.permit_ttl: there is no such setting; did you mean 'permit_ttl_ms'?"),
        ("timing: {lease_ttl_s: 6}", "timing.lease_ttl_s: there is no such setting; did you mean 'lease_ttl_ms'?"),
        (
            "coordinator: {rules: {drawdown: {hard: 5}}}",
            "coordinator.rules.drawdown.hard: there is no such setting; did you mean 'hard_usd'?",
        ),
        ("coordinator: {rules: {drawdwn: {}}}", "there is no such setting; did you mean 'drawdown'?"),
        ("zzzzzz: a", "zzzzzz: there is no such setting"),
        ("1: 2", "1: there is no such setting"),
        ("timing: {1: 2}", "timing.1: keys should be strings, and it is 1"),
    ],
)
def test_an_unknown_setting_is_refused_with_what_may_have_been_meant(faults: Faults, text: str, sentence: str) -> None:
    """A misspelt limit is a limit that does not hold: unknown settings are refused, with a suggestion."""
    (told,) = faults(text)
    assert told.endswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("timing: {permit_ttl_ms: 2s}", "timing.permit_ttl_ms: input should be a valid integer"),
        ("timing: {permit_ttl_ms: 2.5}", "timing.permit_ttl_ms: input should be a valid integer"),
        ("timing: {request_timeout_ms: true}", "timing.request_timeout_ms: input should be a valid number or a text"),
        ("timing: {request_timeout_ms: [1]}", "timing.request_timeout_ms: input should be a valid integer"),
        ("timing: fast", "timing: input should be a valid dictionary"),
        ("timing:", "timing: input should be a valid dictionary"),
        ("agent: {http_port: 70000}", "agent.http_port: input should be less than or equal to 65535, and it is 70000"),
        ("agent: {report_min_interval_ms: 0}", "agent.report_min_interval_ms: input should be greater than 0"),
        ("agent: {freeze_scope: venue}", "agent.freeze_scope: input should be 'global', 'node' or 'symbol'"),
        ("agent: {limits: {max_total_notional_usd: 1 million}}", "input should be a valid number"),
        ("cluster: a/b", "cluster: string should match pattern"),
        ("cluster: ''", "cluster: string should match pattern"),
        (
            "coordinator: {rules: {drawdown: {mode: halt}}}",
            "coordinator.rules.drawdown.mode: input should be 'frozen'",
        ),
        ("coordinator: {rules: {lost_nodes: {hard_nodes: 1.5}}}", "input should be a valid integer"),
    ],
)
def test_a_value_of_the_wrong_kind_or_unit_is_refused(faults: Faults, text: str, sentence: str) -> None:
    """A value that is no figure in the setting's unit is refused with its place and what it is."""
    (told,) = faults(text)
    assert sentence in told
    assert ", and it is " in told


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "-5", "0", "1e999"])
@pytest.mark.parametrize(
    "place",
    [
        *(f"coordinator: {{rules: {{{rule}: {{hard_usd: VALUE}}}}}}" for rule in RULES),
        *(f"coordinator: {{rules: {{{rule}: {{warning_usd: VALUE}}}}}}" for rule in RULES),
        "coordinator: {rules: {lost_nodes: {hard_nodes: VALUE}}}",
        "coordinator: {rules: {stale_reports: {hard_ms: VALUE}}}",
        "agent: {limits: {max_total_notional_usd: VALUE}}",
        "agent: {limits: {max_inventory_usd_per_symbol: VALUE}}",
        "timing: {permit_ttl_ms: VALUE}",
    ],
)  # fmt: skip
def test_a_limit_that_could_never_be_reached_is_refused(faults: Faults, place: str, value: str) -> None:
    """UNKNOWN IS FROZEN: infinite, NaN, negative and zero limits are refused; off is said by leaving a limit out."""
    assert faults(place.replace("VALUE", value))


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_an_edge_threshold_that_is_no_number_is_refused(faults: Faults, load: Load, value: str) -> None:
    """UNKNOWN IS FROZEN: an edge may be below zero, but it has to be a number."""
    place = "agent: {limits: {edge_freeze_threshold_bps: VALUE}}"
    assert "finite number" in faults(place.replace("VALUE", value))[0]
    assert load(place.replace("VALUE", "-2.5")).agent.limits.edge_freeze_threshold_bps == -2.5


@pytest.mark.parametrize(
    ("timing", "sentence"),
    [
        ("request_timeout_ms: 500", "timing.request_timeout_ms (500) must be < renew_every_ms (500): a hung call"),
        ("permit_ttl_ms: 1400", "timing: 3 * renew_every_ms (1500) must be <= permit_ttl_ms (1400): one lost renewal"),
        ("lease_ttl_ms: 4200", "timing.leader_deadline_ms * clock_rate_ratio (4200) must be < lease_ttl_ms (4200)"),
        ("backoff_cap_ms: 2000", "timing.backoff_cap_ms (2000) must be < permit_ttl_ms (2000)"),
        ("clock_rate_ratio: 0.5", "timing.clock_rate_ratio must be between 1.0 and 2.0, and it is 0.5"),
        ("backoff_cap_ms: 0", "timing.backoff_cap_ms must be greater than 0, and it is 0"),
    ],
)
def test_a_broken_timing_inequality_is_refused(faults: Faults, timing: str, sentence: str) -> None:
    """BOUNDED STOP: a timing that breaks a promise keeps a process from starting; nothing is adjusted silently."""
    (told,) = faults(f"timing: {{{timing}}}")
    assert told.startswith(sentence)


@pytest.mark.parametrize("value", [".nan", ".inf"])
def test_a_clock_rate_that_is_no_number_is_refused(faults: Faults, value: str) -> None:
    """BOUNDED STOP: NaN would satisfy no inequality and break every bound."""
    assert (
        "timing.clock_rate_ratio: input should be a finite number"
        in faults(f"timing: {{clock_rate_ratio: {value}}}")[0]
    )


@pytest.mark.parametrize("rule", RULES)
def test_rule_levels_in_the_wrong_order_are_refused(faults: Faults, load: Load, rule: str) -> None:
    """A warning that comes after the freeze warns of nothing."""
    (told,) = faults(f"coordinator: {{rules: {{{rule}: {{warning_usd: 10, hard_usd: 5}}}}}}")
    assert told == f"coordinator.rules.{rule}: the warning level (10) must not be above the hard level (5)"
    assert load(f"coordinator: {{rules: {{{rule}: {{warning_usd: 5, hard_usd: 5}}}}}}")
    assert load(f"coordinator: {{rules: {{{rule}: {{warning_usd: 5}}}}}}")


def test_levels_of_counting_rules_are_put_in_order_as_well(faults: Faults) -> None:
    """The same holds for rules on numbers of nodes and on ages."""
    told = faults(
        "coordinator: {rules: {lost_nodes: {warning_nodes: 3, hard_nodes: 2}, "
        "stale_reports: {warning_ms: 9, hard_ms: 8}}}"
    )
    assert [fault.split(":")[0].rpartition(".")[2] for fault in told] == ["lost_nodes", "stale_reports"]


def test_report_intervals_in_the_wrong_order_are_refused(faults: Faults) -> None:
    """At most one report in a time that is longer than the one in which there must be one is impossible."""
    (told,) = faults("agent: {report_min_interval_ms: 2000}")
    assert told == "agent.report_min_interval_ms (2000) must be at most report_max_interval_ms (1000)"


def test_all_faults_are_told_at_once(faults: Faults) -> None:
    """Every fault is told in one go: unknown names, wrong values and broken inequalities together."""
    told = faults(
        """
        clustr: a
        timing: {permit_ttl_ms: 200}
        agent: {gatee: x, http_port: 70000}
        coordinator: {rules: {drawdown: {warning_usd: 5, hard_usd: 2}, net_notional: {hard_usd: .inf}},
                      evaluate_every_ms: 0}
        """
    )
    places = {
        "clustr": 1, "timing": 2, "agent.gatee": 1, "agent.http_port": 1, "coordinator.evaluate_every_ms": 1,
        "coordinator.rules.net_notional.hard_usd": 1,
    }  # fmt: skip
    for place, count in places.items():
        assert sum(fault.startswith((f"{place}:", f"{place}.")) for fault in told) == count, place


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a: [", "is not YAML"),
        (b"a: b: c", "is not YAML"),
        (b"\x00\xff\x01", "is not YAML"),
        (b"\xff\xfe", "is not YAML"),
        (b"!!python/object/apply:os.system ['true']", "is not YAML"),
        (b"cluster: !!bool maybe", "is not YAML"),
        (b"cluster: !!timestamp soon", "is not YAML"),
        (b"cluster: !!int ''", "is not YAML"),
        (b"- a\n- b", "must hold settings by name, not a list"),
        (b"just a text", "must hold settings by name, not a str"),
        (b"42", "must hold settings by name, not a int"),
    ],
)
def test_a_file_that_is_no_yaml_of_settings_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    """A file that cannot be understood is refused in one sentence that names it."""
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        load_settings(path)
    (told,) = refused.value.faults
    assert told.startswith(f"{path}: {sentence}")
    assert "\n" not in told


def test_a_file_that_is_no_yaml_is_told_by_its_line_and_not_by_what_stands_there(tmp_path: Path) -> None:
    """The line that YAML stumbles over may hold the password of a store."""
    path = tmp_path / "broken.yaml"
    path.write_text("cluster: c\nstore: redis://me:secret@h: x\n", encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_settings(path)
    assert refused.value.faults == [f"{path}: is not YAML (line 2: mapping values are not allowed here)"]


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A missing or unreadable file never means built-in defaults."""
    for path, sentence in ((tmp_path / "gone.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError) as refused:
            load_settings(path)
        assert refused.value.faults == [f"{path}: cannot be read ({sentence})"]


@settings(
    deadline=None, max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(st.data())
def test_no_value_makes_loading_fail_in_another_way(load: Load, data: st.DataObject) -> None:
    """Whatever stands in the file, loading gives sound settings or sentences, never another error."""
    junk = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just({"x": 1})
    body = values(load_settings(None))
    section = body
    while data.draw(st.booleans()):
        inner = [value for value in section.values() if isinstance(value, dict)]
        if not inner:
            break
        section = data.draw(st.sampled_from(inner))
    section[data.draw(st.sampled_from(sorted(section)))] = data.draw(junk)
    with contextlib.suppress(ConfigError):
        loaded = load(yaml.safe_dump(body))
        assert timing_faults(loaded.timing.to_core()) == []
        levels = [rule["hard_usd"] for rule in loaded.coordinator.rules.model_dump().values() if "hard_usd" in rule]
        assert all(level is None or (level > 0 and math.isfinite(level)) for level in levels)


# -- several stores --------------------------------------------------------------------------------------------------


def test_one_store_or_a_list_of_them(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text is one store, a list several; the environment separates them by spaces."""
    assert load("store: memory://x").stores == ("memory://x",)
    assert load("store: [memory://x, memory://y]").stores == ("memory://x", "memory://y")
    assert load("store: memory://x", store=["memory://a", "memory://b"]).stores == ("memory://a", "memory://b")
    monkeypatch.setenv("KILLSWITCH_STORE", "memory://x  etcd://h1:2379,h2:2379")
    assert load("").stores == ("memory://x", "etcd://h1:2379,h2:2379")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("store: []", "store: names no store"),
        ("store: ' '", "store: names no store"),
        ("store: [redis://me:secret@h, redis://me:secret@h]", "store: names one store twice"),
        ("store: {secret: 1}", "store.*valid"),
    ],
)
def test_a_list_of_stores_that_makes_no_sense_is_refused_without_repeating_it(load: Load, text: str, said: str) -> None:
    """A URL may hold a password, so a fault of the list says what is wrong and shows nothing of it."""
    with pytest.raises(ConfigError, match=said) as caught:
        load(text)
    assert "secret" not in str(caught.value)
