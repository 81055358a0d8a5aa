"""docs/risk.md is true: its examples are played, its files loaded, and it leaves no control, metric or scenario out."""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import structlog
import yaml
from prometheus_client import CollectorRegistry

from killswitch.risk.breaker.breaker_machine import BreakerMode
from killswitch.risk.breaker.breaker_settings import ReasonClass
from killswitch.risk.exposure.policy_settings import RiskRules, load_risk_rules
from killswitch.risk.exposure.policy_table import PolicyMode, Regime
from killswitch.risk.node_rule import LEVEL_RANK
from killswitch.risk.pretrade.order import PretradeOrder
from killswitch.risk.pretrade.pretrade_settings import PreTradeSettings
from killswitch.risk.process.process_limits import ProcessLimits
from killswitch.risk.process.risk_limits_file import RiskLimitsFile, load_risk_limits
from killswitch.risk.process.rule_loading import load_node_rules, load_order_rules
from killswitch.risk.refusal import OrderRefused, RefusalKind
from killswitch.simulation.chaos import CHAOS
from killswitch.simulation.rig import TITLES
from tests.support.risk_metrics import metric_names

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "risk.md"
TEXT = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
FENCE = re.compile(r"^```(\w+) ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MS = 1_000_000
RULES_SECTIONS = set(RiskRules.model_fields)


def blocks() -> list[tuple[str, str, str]]:
    """Language, word behind it, and text of every fenced block."""
    return FENCE.findall(TEXT)


# -- the examples of single controls, played on the real ones -----------------------------------------------------


class Stage:
    """The controls of one trading process, on a clock and a calendar of the stage's own."""

    def __init__(self, limits: RiskLimitsFile) -> None:
        self.now_ns, self.read_costs_ns, self.day = 1_000_000_000_000, 0, dt.date(2026, 1, 5)
        self.process = ProcessLimits(limits, registry=CollectorRegistry(), clock=self.clock, day=lambda: self.day)
        self.controls, self.monitor = self.process.controls, self.process.monitor
        self.orders = 0
        self.last = ("", "", 0.0, 0.0, "")

    def clock(self) -> int:
        self.now_ns += self.read_costs_ns
        return self.now_ns

    def do(self, line: str) -> str | OrderRefused:
        """Do what a line says; return how it went, in a word or as the refusal."""
        words = line.split()
        match words:
            case [times, "times", *rest]:
                answers = [self.do(" ".join(rest)) for _ in range(int(times))]
                assert len(set(map(str, answers))) == 1, f"{line}: {answers}"
                return answers[0]
            case [("buy" | "sell") as side, qty, symbol, *rest]:
                return self.order(side, float(qty), symbol, dict(zip(rest[::2], rest[1::2], strict=True)))
            case ["amend", qty]:
                refused = self.controls.admit_amend(self.last[0], float(qty))
                self.monitor.settle_amend(self.last[0], accepted=refused is None)
                return refused or "sent"
            case ["cancel"]:
                self.controls.on_cancel()
                self.controls.release(self.last[0])
                return "sent"
            case ["enable", strategy, "by", person]:
                try:
                    self.controls.enable(strategy, person, "looked at its fills")
                except ValueError as error:
                    return f"no: {error}"
                return "enabled"
            case ["edge", symbol, bps, "bps"]:
                return "frozen" if self.monitor.on_edge_update(symbol, float(bps)) else "fine"
            case ["frozen?"]:
                return "yes" if self.monitor.is_frozen() else "no"
            case _:
                self.happens(line)
        return ""

    def happens(self, line: str) -> None:
        """Have prices, results and time come in as a line says."""
        match line.split():
            case ["price", symbol, price]:
                self.controls.on_price(symbol, float(price))
            case ["quote", symbol, bid, ask]:
                self.controls.on_quote(symbol, float(bid), float(ask))
            case ["wait", number, "ms"]:
                self.now_ns += int(number) * MS
            case ["clock", "back", number, "ms"]:
                self.now_ns -= int(number) * MS
            case ["clock", "reads", "cost", number, "ms"]:
                self.read_costs_ns = int(number) * MS
            case ["next", "day"]:
                self.day += dt.timedelta(days=1)
            case ["hold", qty, symbol, "at", price]:
                self.monitor.update_position(symbol, float(qty), float(price))
            case ["filled"]:
                order, symbol, qty, price, strategy = self.last
                side = "buy" if qty > 0 else "sell"
                self.controls.on_fill(symbol, side, abs(qty), price, client_order_id=order, strategy=strategy)
            case ["result", usd, "USD"]:
                self.controls.on_result(float(usd))
            case _:
                raise AssertionError(f"the stage does not know {line!r}")

    def order(self, side: str, qty: float, symbol: str, more: dict[str, str]) -> str | OrderRefused:
        if "id" not in more:
            self.orders += 1
        order_id = more.get("id", f"o-{self.orders}")
        price = float(more["at"]) if "at" in more else None
        refused = self.controls.admit(order_id, symbol, side, qty, price, strategy=more.get("as"))
        if refused is None:
            self.last = (order_id, symbol, qty if side == "buy" else -qty, price or 0.0, more.get("as", ""))
        return refused or "sent"


def played(settings: str, text: str, folder: Path) -> str:
    """What a block says when it is played: each line with its outcome, and the sentence of a refusal below it."""
    path = folder / "risk_limits.yaml"
    path.write_text(settings, encoding="utf-8")
    stage = Stage(load_risk_limits(path))
    said = []
    for line in text.splitlines():
        if line.startswith(" "):
            continue
        what = line.partition("->")[0].strip()
        outcome = stage.do(what)
        if isinstance(outcome, OrderRefused):
            said += [f"{what:<40}-> {outcome.kind}", f"    {outcome.sentence}"]
        else:
            said.append(f"{what:<40}-> {outcome}" if outcome else what)
    return "\n".join(said) + "\n"


def plays() -> list[tuple[str, str]]:
    """Every block that is played, with the settings that stand before it."""
    found, settings = [], ""
    for language, word, text in blocks():
        if language == "yaml":
            settings = text
        if (language, word) == ("text", "play"):
            found.append((settings, text))
    return found


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


@pytest.mark.parametrize("play", plays(), ids=lambda play: play[1].partition("\n")[0])
def test_every_example_of_a_control_is_what_the_control_says(play: tuple[str, str], tmp_path: Path) -> None:
    settings, text = play
    assert played(settings, text, tmp_path) == text


def test_every_kind_of_refusal_is_explained_and_most_are_shown() -> None:
    tables = "\n".join(line for line in TEXT.splitlines() if line.startswith("|"))
    assert not {kind for kind in get_args(RefusalKind) if f"`{kind}`" not in tables}
    shown = {kind for _, text in plays() for kind in re.findall(r"-> (\w+)$", text, re.MULTILINE)}
    # A full table needs 100,000 symbols, a monitor's error a source of marks: those are shown elsewhere or not at all.
    account = {"policy_throttle", "breaker"}  # which stand in no file of limits
    assert set(get_args(RefusalKind)) - shown == {"monitor_error", "table_full", "rule", "control_error"} | account


# -- the files and programs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [text for language, _, text in blocks() if language == "yaml"])
def test_every_yaml_block_is_a_file_that_is_taken(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text, encoding="utf-8")
    if set(yaml.safe_load(text)) & RULES_SECTIONS - set(RiskLimitsFile.model_fields):
        load_risk_rules(path)
    else:
        load_risk_limits(path)


def programs() -> list[tuple[str, str, str]]:
    """Every python block: its word, itself, and the output that stands below it, which may be empty."""
    found: list[tuple[str, str, str]] = []
    for language, word, text in blocks():
        if language == "python":
            found.append((word, text, ""))
        if (language, word) == ("text", "output"):
            found[-1] = (*found[-1][:2], text)
    return found


def output_of(word: str, code: str, folder: Path) -> str:
    """Run a program in a folder of its own, which holds the file of limits that ships; return what it prints."""
    (folder / "risk_limits.yaml").write_text((ROOT / "config" / "risk_limits.yaml").read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": word or "example"}
    if word == "gate":
        names.update(gate=OpenGate(), venue=SilentVenue())
    out = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out):
        exec(compile(code, "docs/risk.md", "exec"), names)
    return out.getvalue()


class OpenGate:
    """A gate that lets everything pass."""

    def allows(self, *_: Any, **__: Any) -> bool:
        return True

    def check(self, *_: Any, **__: Any) -> None:
        return None


class SilentVenue:
    """A venue that takes everything and says nothing."""

    def place(self, order: Any) -> None:
        del order

    def cancel(self, client_order_id: str) -> None:
        del client_order_id


@pytest.mark.parametrize("program", programs(), ids=lambda program: program[1].partition("\n")[0])
def test_every_program_runs_and_prints_what_stands_below_it(program: tuple[str, str, str], tmp_path: Path) -> None:
    word, code, output = program
    assert output_of(word, code, tmp_path) == output


def test_the_rules_of_ones_own_load_by_the_names_that_the_document_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = {word: text for language, word, text in blocks() if language == "python" and word.endswith("rule")}
    package = tmp_path / "mydesk"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "rules.py").write_text("\n".join(code.values()), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    (file,) = [text for language, _, text in blocks() if language == "yaml" and "mydesk.rules" in text]
    path = tmp_path / "risk_limits.yaml"
    path.write_text(file, encoding="utf-8")
    limits = load_risk_limits(path)
    try:
        (order_rule,) = load_order_rules(limits.rules.orders)
        (node_rule,) = load_node_rules(limits.rules.node)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "mydesk"]:
            del sys.modules[name]
    assert (order_rule.name, node_rule.name) == ("round_lots", "too_many_orders")
    refused = order_rule.refuses(PretradeOrder("AAPL", 1, 150.0, 1.0, "", False))
    assert refused is not None
    assert refused.kind == "rule"
    assert refused.sentence in TEXT
    assert order_rule.refuses(PretradeOrder("AAPL", 1, 200.0, 1.0, "", False)) is None


# -- nothing is left out ------------------------------------------------------------------------------------------


def test_every_section_of_the_limits_and_of_the_controls_is_in_the_document() -> None:
    sections = {name for name in RiskLimitsFile.model_fields if name not in _account_settings()}
    named = {*sections, *(f"pretrade.{name}" for name in PreTradeSettings.model_fields), *RULES_SECTIONS}
    assert not {name for name in named if f"`{name}`" not in TEXT}


def _account_settings() -> set[str]:
    """Settings of the account and its breaker, which the file explains and the document does not repeat."""
    from killswitch.risk.account_limits import AccountLimits  # noqa: PLC0415 - only here

    return set(AccountLimits.model_fields)


def test_every_metric_of_the_node_and_of_a_trading_process_is_in_both_documents(tmp_path: Path) -> None:
    names = metric_names(tmp_path)
    assert len(names) > 25
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for text in (TEXT, operations):
        assert not {name for name in names if not re.search(rf"`{name}(\{{[\w,]+\}})?`", text)}


def test_every_scenario_mode_class_and_level_is_in_the_document() -> None:
    assert len(CHAOS) == 5
    assert list(TITLES) == ["A", "B", "C", "D", "E"]
    words = {
        *CHAOS, *TITLES, *LEVEL_RANK, *(mode.name for mode in PolicyMode), *(regime.name for regime in Regime),
        *(mode.value for mode in BreakerMode), *(kind.value for kind in ReasonClass),
    }  # fmt: skip
    assert not {word for word in words if f"`{word}`" not in TEXT}
