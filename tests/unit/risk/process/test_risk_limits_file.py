"""``config/risk_limits.yaml``: what ships is what is built in, every fault is a sentence, both names of a setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from killswitch.risk.account_limits import load_account_limits
from killswitch.risk.process.risk_limits_file import NO_LIMIT_USD, RiskLimitsFile, limits_schema, load_risk_limits
from killswitch.settings.settings_file import RiskFileError

SHIPPED = Path(__file__).resolve().parents[4] / "config"


def test_the_limits_that_ship_are_the_built_in_ones_and_leave_nothing_out() -> None:
    path = SHIPPED / "risk_limits.yaml"
    assert load_risk_limits(path) == load_risk_limits(None) == RiskLimitsFile()
    shipped = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert shipped == RiskLimitsFile().model_dump(mode="json")


def test_every_limit_that_ships_is_explained_above_it() -> None:
    lines = (SHIPPED / "risk_limits.yaml").read_text(encoding="utf-8").splitlines()
    unexplained = [
        line.strip()
        for before, line in zip(["", *lines], lines, strict=False)
        if ":" in line and not line.lstrip().startswith("#") and not before.lstrip().startswith("#")
    ]
    assert unexplained == []


def test_every_example_in_the_file_that_ships_is_sound_and_switches_its_section_on(tmp_path: Path) -> None:
    """The examples are comments; taken out of them and put in place of what they explain, they must load."""
    lines = (SHIPPED / "risk_limits.yaml").read_text(encoding="utf-8").splitlines()
    with_examples: list[str] = []
    instead = ""
    seen = []
    for line in lines:
        bare = line.lstrip()
        indent = line[: len(line) - len(bare)]
        if bare.startswith("#   ") and instead:
            example = f"{indent}{bare.removeprefix('#   ')}"
            if instead == "?":
                instead = bare.removeprefix("#   ").partition(":")[0]
                seen.append(instead)
            with_examples.append(example)
        elif bare == "# Example:":
            instead = "?"
        elif not bare.startswith(f"{instead}:") or not instead:
            with_examples.append(line)
        else:
            instead = ""
    path = tmp_path / "examples.yaml"
    path.write_text("\n".join(with_examples), encoding="utf-8")
    loaded = load_risk_limits(path)
    dumped: dict[str, Any] = loaded.model_dump()
    sections = {**dumped, **dumped["orders"], **dumped["pretrade"], **dumped["rules"]}
    assert len(seen) == 12
    assert [name for name in seen if not (sections[name] or dumped["rules"].get(name))] == []


def test_the_schema_that_ships_is_what_the_code_produces_and_gives_every_setting_a_meaning() -> None:
    shipped = (SHIPPED / "risk_limits.schema.json").read_text(encoding="utf-8")
    assert shipped == json.dumps(limits_schema(), indent=2) + "\n"
    schema = limits_schema()
    for name, section in {"": schema, **schema["$defs"]}.items():
        for setting, field in section["properties"].items():
            section_of = schema["$defs"].get(field.get("$ref", "").rpartition("/")[2], {})
            assert field.get("description") or section_of.get("description"), f"{name}.{setting}"


def test_the_limits_file_serves_whoever_wants_the_account_alone(tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    path.write_text("max_daily_drawdown_ratio: 0.015\norders: {max_inventory_usd: 10.0}\n")
    limits = load_risk_limits(path)
    assert limits.max_daily_drawdown == 0.015
    assert limits.orders.max_inventory_usd_per_symbol == 10.0
    with pytest.raises(RiskFileError, match="orders: there is no such setting"):
        load_account_limits(path)


def test_an_absent_limit_of_orders_is_one_that_nobody_reaches() -> None:
    limits = RiskLimitsFile().orders.to_risk_limits()
    assert (limits.max_inventory_usd, limits.max_total_notional) == (NO_LIMIT_USD, NO_LIMIT_USD)
    assert limits.edge_freeze_threshold_bps == -NO_LIMIT_USD


def test_limits_that_are_the_same_have_the_same_hash_and_others_another(tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    path.write_text("# nothing but a comment\n")
    assert load_risk_limits(path).content_hash() == RiskLimitsFile().content_hash()
    path.write_text("max_daily_drawdown: 0.019\n")
    assert load_risk_limits(path).content_hash() != RiskLimitsFile().content_hash()
    assert len(RiskLimitsFile().content_hash()) == 16


FAULTS = [
    ("max_daily_drawdown: 2.0\n", ":1: max_daily_drawdown: input should be less than 1, and it is 2.0"),
    ("max_daily_drawdown: 0.02\nmax_daily_drawdown_ratio: 0.02\n", "are two names of one setting; write one of them"),
    ("orders:\n  max_inventory_usd: 1.0\n  max_inventory_usd_per_symbol: 1.0\n", ":3: orders.max_inv"),
    ("drawdown_warning: 0.03\n", ":1: drawdown_warning (0.03) must be at most max_daily_drawdown (0.02)"),
    ("orders:\n  max_total_notional_usd: -1\n", ":2: orders.max_total_notional_usd: input should be greater than 0"),
    ("orders:\n  max_total_notional_usd: .inf\n", ":2: orders.max_total_notional_usd: input should be a finite"),
    ("pretrade:\n  trottle: null\n", ":2: pretrade.trottle: there is no such setting; did you mean 'throttle'?"),
    ("pretrade:\n  order_size: {}\n", ":2: pretrade.order_size: sets no limit"),
    ("orders:\n  schedule:\n    time_zone: Europe/Lodon\n", ":3: orders.schedule.time_zone: 'Europe/Lodon' is no time"),
    ("orders: {schedule: {time_zone: Europe}}\n", ":1: orders.schedule.time_zone: 'Europe' is no time zone that this"),
    ("orders: {schedule: {time_zone: ../x}}\n", ":1: orders.schedule.time_zone: '../x' is no time zone that this"),
    ("rules:\n  node:\n    - {rule: ''}\n", ":3: rules.node.0.rule: string should have at least 1 character"),
    ("judgement: {on_error: ignore}\n", ":1: judgement.on_error: input should be 'pause', 'reduce_only' or 'freeze'"),
    ("value_at_risk: {min_observations: 50}\n", ":1: value_at_risk.min_observations (50) must be at least 100"),
    ("anomaly: {height: 20}\n", ":1: anomaly.height: input should be less than or equal to 12"),
]


@pytest.mark.parametrize(("text", "sentence"), FAULTS)
def test_a_fault_of_the_limits_is_a_sentence_with_path_and_line(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    path.write_text(text)
    with pytest.raises(RiskFileError) as caught:
        load_risk_limits(path)
    assert sentence in caught.value.faults[0]
    assert caught.value.faults[0].startswith(f"{path}:")
