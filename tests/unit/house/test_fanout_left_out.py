"""A store that the bench could not measure is named in what it prints."""

from __future__ import annotations

import json
import sys
from typing import NoReturn

import pytest

from tests.bench import freeze_fanout
from tests.bench.__main__ import table
from tests.bench.fanout_stores import NotHere

FACTS = {"cpu": "c", "cores": 2, "python": "3", "kernel": "k", "date": "d", "load_1min": 0.0}


def is_not_here(*_: object) -> NoReturn:
    raise NotHere("no image of redis can be had")


def test_a_store_that_is_left_out_is_in_the_table_and_in_the_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reader of either sees what was not measured, and why."""
    monkeypatch.setattr(freeze_fanout, "measure", is_not_here)
    rows = freeze_fanout.run(kinds=("redis",))
    assert [row["left_out"] for row in rows] == ["no image of redis can be had"]
    assert "redis: LEFT OUT, not measured" in table({"freeze_fanout": rows}, FACTS)
    monkeypatch.setattr(sys, "argv", ["freeze_fanout", "--store", "redis", "--json"])
    freeze_fanout.main()
    assert json.loads(capsys.readouterr().out)[0]["left_out"] == "no image of redis can be had"
    monkeypatch.setattr(sys, "argv", ["freeze_fanout", "--store", "redis"])
    freeze_fanout.main()
    assert "redis: LEFT OUT, not measured: no image of redis can be had" in capsys.readouterr().out
