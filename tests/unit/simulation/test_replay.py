"""A tape of bars through the account monitor: when it warns, when it kills, how deep it goes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from killswitch.cli import cli
from killswitch.risk.account_limits import AccountLimits
from killswitch.simulation.replay import PATH_POINTS, ReplayOptions, replay, table
from killswitch.simulation.tape import BadTape, Bar, bars_from_csv

_TEST_DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
REAL_TAPE = Path(os.environ.get("KILLSWITCH_TEST_BARS") or _TEST_DATA / "btc-perp-1m-2022-01-20.csv")
"""Two days of one-minute bars of a BTC perpetual, 20 and 21 January 2022, as the demo's test takes them."""
HEADER = "timestamp,open,high,low,close,volume\n"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield
    structlog.reset_defaults()


def bars(*closes: float, day: str = "2026-01-31") -> list[Bar]:
    made, before = [], closes[0]
    for index, close in enumerate(closes):
        stamp = f"{day}T{index // 60:02d}:{index % 60:02d}:00Z"
        made.append(Bar(stamp, before, max(before, close), min(before, close), close, 1.0))
        before = close
    return made


def tape(folder: Path, made: list[Bar]) -> Path:
    path = folder / "bars.csv"
    rows = [f"{one.timestamp},{one.open},{one.high},{one.low},{one.close},{one.volume}" for one in made]
    path.write_text(HEADER + "\n".join(rows) + "\n")
    return path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def test_warnings_and_the_kill_come_when_the_tape_reaches_the_levels() -> None:
    played = replay(bars(40_000.0, 39_700.0, 39_500.0, 39_100.0, 38_000.0), AccountLimits(), ReplayOptions())
    body = played.to_json()
    assert body["quantity"] == 2.5  # long for the whole balance at the first price
    assert (body["warnings"], body["kills"]) == (1, 1)
    assert [(event["at"][11:16], event["alert_level"], event["killed"]) for event in body["events"]] == [
        ("00:02", "WARNING", False), ("00:03", "CRITICAL", True),
    ]  # fmt: skip
    assert body["max_drawdown_pct"] == 5.0
    assert body["final"]["drawdown"] == 5_000.0  # monitoring goes on after the kill
    assert body["circuit_breaker"]["state"] == "ENGAGED"
    assert body["days"][0]["first_at"]["drawdown CRITICAL"].startswith("2026-01-31T00:03")


def test_a_short_earns_where_a_long_loses() -> None:
    falling = bars(40_000.0, 39_000.0, 38_000.0)
    short = replay(falling, AccountLimits(), ReplayOptions(quantity=-2.5)).to_json()
    assert (short["kills"], short["final"]["open_pnl"]) == (0, 5_000.0)
    rising = replay(bars(40_000.0, 41_000.0), AccountLimits(), ReplayOptions(quantity=-2.5)).to_json()
    assert rising["kills"] == 1


def test_limits_balance_and_quantity_are_those_that_were_given() -> None:
    falling = bars(40_000.0, 39_000.0)
    assert replay(falling, AccountLimits(), ReplayOptions(balance_usd=1e6, quantity=2.5)).to_json()["warnings"] == 0
    wide = AccountLimits(max_daily_drawdown=0.5, drawdown_warning=0.4)
    assert replay(falling, wide, ReplayOptions()).to_json()["warnings"] == 0
    heavy = replay(falling, AccountLimits(), ReplayOptions(quantity=15.0)).to_json()
    assert heavy["circuit_breaker"]["causes"].keys() == {"drawdown", "position"}


def test_each_day_is_measured_from_its_own_highest_equity() -> None:
    tape_ = [*bars(40_000.0, 39_700.0), *bars(39_700.0, 39_400.0, day="2026-02-01")]
    body = replay(tape_, AccountLimits(), ReplayOptions()).to_json()
    assert [(day["day"][:10], round(day["max_drawdown_pct"], 3)) for day in body["days"]] == [
        ("2026-01-31", 0.75), ("2026-02-01", 0.756),
    ]  # fmt: skip
    assert body["warnings"] == 0


def test_the_path_keeps_the_deepest_point_of_each_stretch_and_has_a_bound() -> None:
    closes = [40_000.0] * 1_300
    closes[777] = 39_300.0
    played = replay(bars(*closes), AccountLimits(), ReplayOptions())
    assert len(played.path) <= PATH_POINTS
    assert max(point.drawdown_pct for point in played.path) == pytest.approx(1.75)
    assert max(len(line) for line in table(played).splitlines()) <= 80


def test_the_same_tape_gives_the_same_report_to_the_byte() -> None:
    made = bars(40_000.0, 39_100.0, 40_000.0)
    texts = {json.dumps(replay(made, AccountLimits(), ReplayOptions()).to_json(), sort_keys=True) for _ in range(2)}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (ReplayOptions(balance_usd=0.0), "balance"),
        (ReplayOptions(balance_usd=float("inf")), "balance"),
        (ReplayOptions(balance_usd=1.1e15), "balance is 1.1e\\+15; it is at most 1e\\+15"),
        (ReplayOptions(quantity=-1.1e15), "position would be -1.1e\\+15"),
        (ReplayOptions(quantity=0.0), "quantity"),
        (ReplayOptions(quantity=float("nan")), "quantity"),
        (ReplayOptions(symbol=""), "symbol"),
        (ReplayOptions(symbol="ETHUSDT"), "known_symbols"),
    ],
)
def test_options_that_make_no_sense_are_sentences(options: ReplayOptions, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replay(bars(40_000.0), AccountLimits(known_symbols=("BTCUSDT",)), options)


def test_bars_without_a_time_or_out_of_order_cannot_be_played() -> None:
    one = bars(40_000.0)[0]
    with pytest.raises(BadTape, match="no time"):
        replay([Bar("noon", 1, 1, 1, 1, 1)], AccountLimits(), ReplayOptions())
    with pytest.raises(BadTape, match="go back in time"):
        replay([one, Bar("2026-01-30T00:00:00Z", 1, 1, 1, 1, 1)], AccountLimits(), ReplayOptions())
    with pytest.raises(BadTape):
        replay([], AccountLimits(), ReplayOptions())
    without_zone = Bar("2026-01-31 00:00:00", 1, 1, 1, 1, 1)
    assert replay([without_zone], AccountLimits(), ReplayOptions()).path[0].at == "2026-01-31T00:00:00.000000Z"


# ---- the command


def test_the_command_prints_a_table_or_one_document(tmp_path: Path) -> None:
    path = tape(tmp_path, bars(40_000.0, 39_500.0, 39_000.0))
    shown = invoke("replay", "--bars", str(path))
    assert shown.exit_code == 0, shown.output
    assert shown.stderr == ""
    lines = shown.stdout.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert all(line == line.rstrip() for line in lines)
    assert any(line.endswith("KILL") for line in lines)
    assert lines[-1] == "1 warning, 1 kill"
    body = json.loads(invoke("-o", "json", "replay", "--bars", str(path), "--quantity", "-1").stdout)
    assert body["schema"] == "killswitch.replay/1"
    assert (body["bars"], body["quantity"], body["kills"]) == (3, -1.0, 0)


def test_the_command_takes_limits_and_leaves_a_breakers_file_alone(tmp_path: Path) -> None:
    path = tape(tmp_path, bars(40_000.0, 39_000.0))
    limits = tmp_path / "limits.yaml"
    state = tmp_path / "breaker.json"
    limits.write_text(f"max_daily_drawdown: 0.3\ndrawdown_warning: 0.2\nstate_file: {state}\n")
    body = json.loads(invoke("-o", "json", "replay", "--bars", str(path), "--limits", str(limits)).stdout)
    assert (body["kills"], body["limits"]["max_daily_drawdown"]) == (0, 0.3)
    assert not state.exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("bars.csv", "", "empty"),
        ("bars.csv", HEADER + "\x00,1,1,1,1,1\n", "no time"),
        ("bars.csv", HEADER + '"' + "x" * 200_000, "is no CSV file"),
        ("bars.csv", HEADER + "\udcff", "is no CSV file in UTF-8"),
        ("bars.csv", HEADER + "noon,1,1,1,1,1\n", "no time"),
        ("bars.csv", HEADER + "2026-01-31T00:00:00Z,nan,1,1,1,1\n", "finite"),
        ("limits.yaml", "max_drawdown: 1\n", "there is no such setting"),
        (None, "", "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_a_sentence_and_exit_code_2(
    tmp_path: Path, name: str | None, content: str, says: str
) -> None:
    path = tape(tmp_path, bars(40_000.0))
    limits = tmp_path / "limits.yaml"
    limits.write_text("")
    if name is None:
        path.unlink()
    else:
        (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    done = invoke("replay", "--bars", str(path), "--limits", str(limits))
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert done.stdout == ""


@pytest.mark.skipif(not REAL_TAPE.exists(), reason="set KILLSWITCH_TEST_BARS to the file of bars")
def test_the_real_fall_of_january_2022_warns_first_and_kills_on_its_first_evening() -> None:
    played = replay(bars_from_csv(REAL_TAPE), AccountLimits(), ReplayOptions())
    body = played.to_json()
    first, second = body["days"]
    assert first["first_at"]["drawdown WARNING"] == "2022-01-20T17:49:00.000000Z"
    assert first["first_at"]["drawdown CRITICAL"] == "2022-01-20T20:45:00.000000Z"
    assert (body["kills"], len(body["engagements"])) == (1, 1)
    assert round(second["max_drawdown_pct"], 2) == 13.87
    assert body["ticks"] == 4 * body["bars"] + 1
