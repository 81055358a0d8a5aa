"""The schemas that ship: each setting says what it means, in which unit, and what it is when nobody writes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from killswitch.risk.exposure.policy_settings import RiskRules
from killswitch.risk.process.risk_limits_file import RiskLimitsFile
from killswitch.settings.config import Settings
from killswitch.settings.section import settings_schema

SHIPPED = Path(__file__).resolve().parents[3] / "config"
SCHEMAS = {"killswitch": Settings, "risk_limits": RiskLimitsFile, "risk_rules": RiskRules}
UNIT_IN_NAME = re.compile(r"_(usd|ms|s|seconds|pct|bps|ratio|minute)(_|$)|^(hard_)?from_minutes_")
UNIT_IN_WORDS = re.compile(
    r"^(Counts?|Milliseconds|Seconds|Minutes|USD|US dollars|Basis points|Per cent|Ratio|Units|Port number|Score|Widths|"
    r"Levels|Seed)\b|\b(in seconds|milliseconds)\b"
)


def properties(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every property of a schema and its sections: name, what it says, whether it is required."""
    for name, section in {"": schema, **schema.get("$defs", {})}.items():
        for setting, shown in section.get("properties", {}).items():
            yield f"{name}.{setting}", shown, setting in section.get("required", ())


def is_number(shown: dict[str, Any]) -> bool:
    """Whether a setting is a number, or holds numbers by name or in a row."""
    inner = [shown, *shown.get("anyOf", ())]
    inner += [
        part[key] for part in inner for key in ("items", "additionalProperties") if isinstance(part.get(key), dict)
    ]
    return any(part.get("type") in ("number", "integer") for part in inner)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_setting_has_a_meaning_a_default_and_a_unit(name: str) -> None:
    schema = json.loads((SHIPPED / f"{name}.schema.json").read_text(encoding="utf-8"))
    told = list(properties(schema))
    assert len(told) > 20
    assert [one for one, shown, _ in told if not shown.get("description")] == []
    assert [one for one, shown, required in told if required == ("default" in shown)] == []
    without_unit = [
        one
        for one, shown, _ in told
        if is_number(shown)
        and not UNIT_IN_NAME.search(one.rpartition(".")[2])
        and not UNIT_IN_WORDS.search(shown["description"])
    ]
    assert without_unit == []


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_defaults_that_a_schema_tells_are_those_that_hold(name: str) -> None:
    schema, model = settings_schema(SCHEMAS[name]), SCHEMAS[name]
    told = {setting: shown["default"] for setting, shown in schema["properties"].items() if "default" in shown}
    whole = model().model_dump(mode="json")
    assert told == {setting: whole[setting] for setting in told}
    assert set(told) == set(whole)


def test_two_sections_of_one_name_are_refused() -> None:
    def section(description: str) -> type[BaseModel]:
        class Part(BaseModel):
            size: int = Field(1, description=description)

        return Part

    class Whole(BaseModel):
        one: section("Count.") = Field(default_factory=section("Count."))  # type: ignore[valid-type]
        other: section("Bytes.") = Field(default_factory=section("Bytes."))  # type: ignore[valid-type]

    with pytest.raises(ValueError, match="two sections of settings are named Part"):
        settings_schema(Whole)


def test_a_setting_that_is_required_has_no_default() -> None:
    class Part(BaseModel):
        """A part.

        More of it.
        """

        size: int = Field(..., description="Count.")

    class Whole(BaseModel):
        part: Part | None = None

    schema = settings_schema(Whole)
    assert schema["properties"]["part"]["description"] == "A part."
    assert "default" not in schema["$defs"]["Part"]["properties"]["size"]
    with pytest.raises(ValidationError):
        Part()  # type: ignore[call-arg]
