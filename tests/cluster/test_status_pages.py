"""What the daemons show over HTTP, as a probe and as Prometheus would read it."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.lab import Lab
from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """One node and one coordinator."""
    made = Lab(tmp_path, rules={"gross_notional": {"hard_usd": 1_000}})
    made.initialise()
    yield made
    made.close()


def address(lab: Lab, daemon: str) -> str:
    """Where a daemon says that it serves."""
    found = wait_until(
        lambda: re.search(r"at (http://\S+) runs", lab.processes[daemon].log.read_text()), what="its line"
    )
    return str(found[1])


def get(url: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metrics(url: str) -> dict[str, float]:
    """Samples without labels, by name, as a real parser of the format reads them."""
    text = get(f"{url}/metrics")[1]
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


def test_an_agent_is_ready_while_it_holds_a_permit_and_healthy_while_it_turns(lab: Lab) -> None:
    """A probe sees the permit: ready with one, not ready without; a store that is down is no reason to restart."""
    lab.start_agent("n1")
    url = address(lab, "n1")
    wait_until(lambda: get(f"{url}/readyz")[0] == 200, what="readiness")
    body: dict[str, Any] = json.loads(get(f"{url}/readyz")[1])
    assert body["mode"] == "ACTIVE"
    assert 0 < body["permit_ms_left"] <= 1_200
    lab.freeze()
    assert get(f"{url}/readyz")[0] == 200
    shown = metrics(url)
    assert shown["killswitch_gate_mode"] == 2
    assert shown["killswitch_flag_epoch"] == 2
    pid = lab.pause_etcd()
    wait_until(lambda: get(f"{url}/readyz")[0] == 503, what="the permit to run out")
    assert get(f"{url}/healthz")[0] == 200
    lab.resume_etcd(pid)
    wait_until(lambda: get(f"{url}/readyz")[0] == 200, within_s=15, what="readiness again")
    assert get(f"{url}/nowhere")[0] == 404


def test_a_coordinator_shows_who_leads_and_how_near_its_rules_are(lab: Lab) -> None:
    """An operator's dashboard has the figures that the rules look at."""
    lab.start_coordinator("c1")
    url = address(lab, "c1")
    wait_until(lambda: metrics(url).get("killswitch_leads") == 1, what="leadership")
    assert json.loads(get(f"{url}/readyz")[1])["term"] == 1
    text = wait_until(
        lambda: 'killswitch_rule_level{rule="gross_notional"} 0.0' in get(f"{url}/metrics")[1], what="the rule"
    )
    assert text
