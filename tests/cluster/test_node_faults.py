"""One real cluster on loopback, one fault at a time. Bounds come from the timing, times a stated factor."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from killswitch_agent.routers import RouterPresence

from killswitch import Gate
from killswitch.cluster.records import AckRecord, NodeRecord
from killswitch.core.permit import expiry_bound_ms, worst_case
from killswitch.link import Exposure, Holding
from killswitch.stores import Entry
from tests.cluster.lab import FAULT_FACTOR, TIMING, Lab
from tests.cluster.router import Router
from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster

PERMIT_S = expiry_bound_ms(TIMING.permit_ttl_ms, TIMING.clock_rate_ratio) / 1000
REACHABLE_S = worst_case(TIMING).reachable_ms / 1000
FAILOVER_S = worst_case(TIMING).failover_ms / 1000
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


def line_of(certificate: dict[str, Any], node: str) -> dict[str, Any]:
    line: dict[str, Any] = next(line for line in certificate["nodes"] if line["node"] == node)
    return line


def test_one_voice_freezes_and_the_proof_names_every_node(make_lab: Callable[..., Lab]) -> None:
    """ONE VOICE FREEZES, PROOF, NOT HOPE: the command alone stops all nodes, no coordinator alive, and says so."""
    lab = make_lab()
    for node in ("n1", "n2", "n3"):
        lab.start_agent(node)
    router = Router(lab, "n2", "r1", working=4)
    wait_until(lambda: lab.cluster.membership().exposure().working_orders == 4, what="the report")
    assert all(lab.is_open(node) for node in ("n1", "n2", "n3"))
    done = lab.freeze("the edge is gone")
    certificate = done.json["certificate"]
    assert certificate["stopped"]
    assert certificate["flat"]
    assert [line["state"] for line in certificate["nodes"]] == ["ACKED"] * 3
    assert line_of(certificate, "n2")["orders_cancelled"] == 4
    assert line_of(certificate, "n2")["last_sequence"] == 9
    assert not any(lab.is_open(node) for node in ("n1", "n2", "n3"))
    lab.release()
    wait_until(lambda: all(lab.is_open(node) for node in ("n1", "n2", "n3")), what="trading to resume")
    lab.run("history", "--verify")
    router.close()


def test_bounded_stop_when_the_agent_is_killed(make_lab: Callable[..., Lab]) -> None:
    """BOUNDED STOP: a killed agent's gate closes by itself, and the certificate says PERMIT_EXPIRED, not flat."""
    lab = make_lab()
    lab.start_agent("n1")
    lab.start_agent("n2")
    router = Router(lab, "n2", "r1", working=4)
    wait_until(lambda: lab.cluster.membership().exposure().working_orders == 4, what="the report")
    lab.processes["n2"].kill()
    done = lab.freeze(expect=3)
    certificate = done.json["certificate"]
    assert certificate["stopped"]
    assert not certificate["flat"]
    assert line_of(certificate, "n1")["state"] == "ACKED"
    line = line_of(certificate, "n2")
    assert (line["state"], line["orders_open"]) == ("PERMIT_EXPIRED", 4)
    assert not lab.is_open("n2")
    wait_until(lambda: router.working == 0, what="the router to cancel without its agent")
    router.close()


def test_bounded_stop_when_the_agent_is_paused_and_woken(make_lab: Callable[..., Lab]) -> None:
    """BOUNDED STOP: a paused agent's gate closes by itself; woken, it acks, and opens nothing before it has read."""
    lab = make_lab()
    lab.start_agent("n1")
    lab.processes["n1"].pause()
    wait_until(lambda: not lab.is_open("n1"), within_s=PERMIT_S * FAULT_FACTOR, what="the permit to run out")
    lab.freeze("while it sleeps", expect=3)
    lab.processes["n1"].resume()
    wait_until(
        lambda: lab.cluster.acks()["n1"].epoch == 2, within_s=REACHABLE_S * FAULT_FACTOR + 2, what="the ack of epoch 2"
    )
    assert not lab.is_open("n1")


def test_bounded_stop_when_the_store_hangs(make_lab: Callable[..., Lab]) -> None:
    """BOUNDED STOP: with the store paused every gate closes by itself, and opens when the store says so again."""
    lab = make_lab()
    lab.start_agent("n1")
    pid = lab.pause_etcd()
    wait_until(lambda: not lab.is_open("n1"), within_s=PERMIT_S * FAULT_FACTOR, what="the permit to run out")
    refused = lab.freeze(expect=4)
    assert "may or may not be in force" in refused.err or "is NOT in force" in refused.err
    lab.resume_etcd(pid)
    # Whatever became of that freeze, node and store agree about it in the end.
    wait_until(lambda: lab.has_permit("n1"), within_s=15, what="the permit to be renewed")
    frozen = bool(lab.cluster.read_flag().flag.freezes)
    wait_until(lambda: lab.is_open("n1") is not frozen, within_s=15, what="the gate to agree with the flag")


def test_nothing_is_lost_when_etcd_is_killed_in_the_middle_of_a_freeze(make_lab: Callable[..., Lab]) -> None:
    """NOTHING IS LOST: etcd dies while the freeze is on its way; the freeze ends in force, once, with its history."""
    lab = make_lab()
    lab.start_agent("n1")
    stopped_pid = lab.pause_etcd()  # so that the freeze is on its way, and not yet there, when the server dies
    freezing = subprocess.Popen(
        lab.arguments("-o", "json", "freeze", "--reason", "mid", "--timeout", "20"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    wait_until(lambda: has_socket(freezing.pid), what="the command to have connected")
    assert lab.kill_etcd() == stopped_pid
    assert freezing.poll() is None
    out, err = freezing.communicate(timeout=40)
    # Reconnecting takes from the time in which the ack can be ahead of the permit's end; either is proof of the stop.
    assert freezing.returncode in (0, 3), err
    document = json.loads(out)
    assert document["certificate"]["stopped"]
    flag = wait_until(lambda: readable_flag(lab), what="the restarted etcd")
    assert [freeze.id for freeze in flag.freezes] == [document["freeze"]["id"]]
    assert not lab.is_open("n1")
    assert lab.cluster.verify_history() == []


def test_unknown_is_frozen_for_an_agent_restarted_while_frozen(make_lab: Callable[..., Lab]) -> None:
    """UNKNOWN IS FROZEN: killed and restarted while frozen, a node is closed before, during and after."""
    lab = make_lab()
    lab.start_agent("n1")
    seen_open: list[str] = []
    lab.freeze("stay down")
    lab.processes["n1"].kill()
    done = threading.Event()
    watcher = threading.Thread(target=lambda: watch_gate(lab, "n1", done, seen_open), daemon=True)
    watcher.start()
    try:
        lab.start_agent("n1")
        instance = lab.cluster.membership().live["n1"]
        assert instance is not None
        wait_until(lambda: lab.cluster.acks()["n1"].instance == instance.instance, what="the new run's ack")
    finally:
        done.set()
        watcher.join()
    assert seen_open == []
    lab.release()
    wait_until(lambda: lab.is_open("n1"), what="trading to resume")


def test_two_agents_of_one_name_are_refused(make_lab: Callable[..., Lab]) -> None:
    """A second agent of a node, on the same gate or on another machine's, ends with exit 5 and a closed gate."""
    lab = make_lab()
    lab.start_agent("n1")
    same_gate = lab.run(*lab.agent_words("n1"), expect=5)
    assert "writes the gate" in same_gate.err
    elsewhere = lab.run(*lab.agent_words("n1", gate_of="x1"), expect=5)
    assert "another agent runs as node 'n1'" in elsewhere.err
    assert not lab.is_open("x1")
    assert lab.is_open("n1")


def test_a_second_agent_does_not_answer_for_the_node_whose_name_it_waits_for(make_lab: Callable[..., Lab]) -> None:
    """PROOF, NOT HOPE: the node is paused and has said nothing; its other pod hears the freeze, and is not asked."""
    # A lease so long that the name is in use until the proof is there.
    lab = make_lab(timing=replace(TIMING, lease_ttl_ms=40_000))
    lab.start_agent("n1")
    router = Router(lab, "n1", "r1", working=4)
    wait_until(lambda: lab.cluster.membership().exposure().working_orders == 4, what="the report")
    lab.processes["n1"].pause()
    twin = lab.start("twin", *lab.agent_words("n1", gate_of="x1"))
    wait_until(lambda: "name_in_use" in twin.log.read_text(), within_s=15, what="the second agent to wait")
    done = lab.freeze(expect=3)
    line = line_of(done.json["certificate"], "n1")
    assert (line["state"], line["orders_open"]) == ("PERMIT_EXPIRED", 4)
    wait_until(lambda: done.json["freeze"]["id"] in causes_on(lab, "x1"), what="the second agent to hold the freeze")
    assert twin.popen.poll() is None
    assert lab.cluster.acks()["n1"].epoch < done.json["epoch"]
    lab.processes["n1"].resume()
    wait_until(lambda: lab.cluster.acks()["n1"].epoch == done.json["epoch"], what="the ack of the node itself")
    # The first ack says that the gate is closed; it is complete once the router has answered.
    wait_until(lambda: lab.cluster.acks()["n1"].complete, what="the answer of its router")
    assert lab.cluster.acks()["n1"].orders_cancelled == 4
    router.close()


def test_an_agent_restarted_while_frozen_never_says_flat_of_a_lost_routers_orders(make_lab: Callable[..., Lab]) -> None:
    """PROOF, NOT HOPE: who waits for the certificate in that moment must not hear of a node without routers."""
    lab = make_lab()
    lab.start_agent("n1")
    router = Router(lab, "n1", "r1", working=2)
    wait_until(lambda: lab.cluster.membership().exposure().working_orders == 2, what="the report")
    vanish(router)
    wait_until(lambda: lost_routers(lab, "n1") == ["r1"], what="the loss to be reported")
    lab.freeze(expect=3)
    lab.processes["n1"].kill()
    before = lab.cluster.acks()["n1"].instance
    acks: list[AckRecord] = []

    def note(entry: Entry) -> None:
        if entry.value is not None:
            acks.append(AckRecord.from_bytes(entry.value, key=entry.key))

    watch = lab.store.watch(lab.cluster.keys.under("acks"), note, lambda: None)
    lab.start_agent("n1")
    wait_until(lambda: [ack for ack in acks if ack.instance != before], what="the new run's ack")
    watch.close()
    assert {ack.orders_open for ack in acks if ack.instance != before} == {2}
    router.gate.close()


def test_a_node_whose_earlier_report_cannot_be_read_waits_for_a_person(make_lab: Callable[..., Lab]) -> None:
    """UNKNOWN IS FROZEN: after going back to an older version, say. The node's next report writes over what it held, so
    the node is frozen, in the store as well, until somebody has looked and releases it; others trade on.
    """
    lab = make_lab()
    lab.start_agent("n1")
    lab.start_agent("n2")
    router = Router(lab, "n1", "r1", working=2)
    wait_until(lambda: lab.cluster.membership().exposure().working_orders == 2, what="the report")
    lab.processes["n1"].kill()
    vanish(router)
    lab.store.commit({}, {lab.cluster.keys.under("reports", "n1"): b'{"v": 99}'})
    lab.start_agent("n1", wait=False)
    cause = wait_until(lambda: next(iter(lab.cluster.read_flag().flag.freezes), None), within_s=20, what="the freeze")
    assert cause is not None
    assert (cause.trigger, str(cause.scope), cause.actor) == ("report_unreadable", "node:n1", "agent:n1")
    assert "what the node held before is unknown" in cause.reason
    assert (lab.is_open("n1"), lab.is_open("n2")) == (False, True)
    wait_until(lambda: lab.cluster.acks()["n1"].freezes == [cause.id], what="the ack of it")
    assert not lab.cluster.acks()["n1"].complete
    lab.release()
    wait_until(lambda: lab.is_open("n1"), what="trading to resume after somebody has looked")
    assert lab.cluster.acks()["n1"].complete
    router.gate.close()


def test_a_killed_agent_is_replaced_without_waiting_for_its_lease(make_lab: Callable[..., Lab]) -> None:
    """A crash is cheap: the gate's lock shows that the old agent is dead, so its lease need not run out."""
    lab = make_lab()
    lab.start_agent("n1")
    lab.processes["n1"].kill()
    lab.start("n1", *lab.agent_words("n1"))
    wait_until(lambda: lab.is_open("n1"), what="trading to resume")
    assert "name_in_use" not in lab.processes["n1"].log.read_text()


def test_an_agent_that_ends_on_purpose_closes_its_gate_and_leaves_no_lost_node(make_lab: Callable[..., Lab]) -> None:
    """A drained node holds nothing up: it leaves the books when it leaves nothing behind."""
    lab = make_lab()
    lab.start_agent("n1")
    lab.start_agent("n2")
    assert lab.processes["n2"].terminate() == 0
    assert not lab.is_open("n2")
    assert set(lab.cluster.membership().nodes) == {"n1"}
    assert lab.freeze().json["certificate"]["flat"]


def test_an_agent_that_ends_with_positions_stays_in_the_books(make_lab: Callable[..., Lab]) -> None:
    """A lost node's exposure stays in the cluster's notional, and it says so."""
    lab = make_lab()
    lab.start_agent("n1")
    lab.start_agent("n2")
    router = Router(lab, "n2", "r1", working=0)
    wait_until(lambda: lab.cluster.membership().exposure().gross_usd == 40_000.0, what="the report")
    lab.processes["n2"].terminate()
    router.close()
    exposure = lab.run("-o", "json", "exposure").json
    assert exposure["gross_usd"] == 40_000.0
    assert exposure["counted_lost"] == ["n2"]


def test_a_restarted_agent_keeps_what_its_routers_hold(make_lab: Callable[..., Lab]) -> None:
    """A restart makes nothing vanish: holdings and unproven orders of before are in the first report after."""
    lab = make_lab()
    lab.start_agent("n1")
    router = Router(lab, "n1", "r1", working=3)
    wait_until(lambda: lab.cluster.membership().exposure().working_orders == 3, what="the report")
    router.link.close()  # the goodbye is told; what it left behind stays counted
    before = lab.cluster.membership().reports["n1"].instance
    lab.processes["n1"].kill()
    lab.start("n1", *lab.agent_words("n1"))
    seen: list[tuple[float, int]] = []
    wait_until(lambda: note_books(lab, seen) != before, within_s=15, what="the restarted agent's report")
    assert set(seen) == {(40_000.0, 3)}
    router.gate.close()


@pytest.mark.parametrize("run", ["the same run", "a new run"])
def test_a_router_that_is_back_before_its_agent_has_joined_holds_what_it_held(
    make_lab: Callable[..., Lab], run: str
) -> None:
    """NOTHING IS LOST: an agent restarted while the store is down hears its routers first, and its own report later."""
    lab = make_lab()
    lab.start_agent("n1")
    router = Router(lab, "n1", "r1", working=3)
    wait_until(lambda: lab.cluster.membership().exposure().working_orders == 3, what="the report")
    before = lab.cluster.membership().reports["n1"].instance
    paused = lab.pause_etcd()
    lab.processes["n1"].kill()
    wait_until(lambda: not router.link.connected, what="the router to lose its agent")
    if run == "a new run":
        router.close()
        # It has not asked the venue for the three, and says that it has none.
        router = Router(lab, "n1", "r1", working=0)
    lab.start("n1", *lab.agent_words("n1"))
    wait_until(lambda: router.link.connected, within_s=15, what="the router to be welcomed")
    lab.resume_etcd(paused)
    seen: list[tuple[float, int]] = []
    wait_until(lambda: note_books(lab, seen) != before, within_s=20, what="the restarted agent's report")
    assert set(seen) == {(40_000.0, 3)}
    router.close()


def test_a_router_that_vanishes_is_lost_and_keeps_the_cluster_from_being_flat(make_lab: Callable[..., Lab]) -> None:
    """PROOF, NOT HOPE: working orders of a vanished router are not proven cancelled by anybody."""
    lab = make_lab()
    lab.start_agent("n1")
    router = Router(lab, "n1", "r1", working=2)
    wait_until(lambda: lab.cluster.membership().exposure().working_orders == 2, what="the report")
    vanish(router)
    wait_until(lambda: lost_routers(lab, "n1") == ["r1"], what="the loss to be reported")
    certificate = lab.freeze(expect=3).json["certificate"]
    assert certificate["stopped"]
    assert not certificate["flat"]
    assert line_of(certificate, "n1")["orders_open"] == 2
    router.gate.close()


def test_a_routers_nan_freezes_the_whole_cluster(make_lab: Callable[..., Lab]) -> None:
    """UNKNOWN IS FROZEN, ONE VOICE FREEZES: one router's NaN on one node closes the gates of all."""
    lab = make_lab()
    lab.start_agent("n1")
    lab.start_agent("n2")
    router = Router(lab, "n1", "r1", working=0)
    router.link.report(Exposure(holdings={"BTCUSDT": Holding(1.0, float("nan"))}))
    wait_until(lambda: not lab.is_open("n2"), what="the other node to be closed")
    assert lab.cluster.read_flag().flag.freezes[0].trigger == "bad_input"
    router.close()


def test_an_edge_collapse_on_one_node_freezes_the_symbol_everywhere(make_lab: Callable[..., Lab]) -> None:
    """ONE VOICE FREEZES: the node's monitor freezes with the scope that the setting names, and can trip again."""
    lab = make_lab(agent_settings={"freeze_scope": "symbol", "limits": {"edge_freeze_threshold_bps": 1.5}})
    lab.start_agent("n1")
    lab.start_agent("n2")
    router = Router(lab, "n1", "r1", working=0)
    for round_number in (1, 2):
        router.link.report(Exposure(edges_bps={"BTCUSDT": 1.2, "ETHUSDT": 3.0}))
        wait_until(lambda: not lab.is_open("n2"), what=f"the other node to be closed, round {round_number}")
        freeze = lab.cluster.read_flag().flag.freezes[0]
        assert (freeze.trigger, str(freeze.scope)) == ("edge_collapse", "symbol:BTCUSDT")
        assert freeze.reason == "Edge degradation: 1.20 BPS < 1.50 BPS"
        with Gate.open(lab.gate_path("n2")) as gate:
            assert gate.allows("ETHUSDT")
        router.link.report(Exposure(edges_bps={"BTCUSDT": 3.0}))
        lab.release()
        wait_until(lambda: lab.is_open("n2"), what="trading to resume")
    router.close()


def test_a_store_wiped_under_a_frozen_cluster_is_told_the_freeze_again(make_lab: Callable[..., Lab]) -> None:
    """UNKNOWN IS FROZEN: with all keys gone, the agents stay closed and say what they know; a release ends it."""
    lab = make_lab()
    lab.start_agent("n1")
    lab.start_agent("n2")
    frozen = lab.freeze("must outlive the store").json["freeze"]["id"]
    lab.store.commit({}, {}, [entry.key for entry in lab.store.scan("/killswitch/lab/")])
    flag = wait_until(
        lambda: (f := readable_flag(lab)) and frozen in f.freeze_ids() and f, what="the freeze to be said again"
    )
    assert any(freeze.trigger == "store_lost_data" for freeze in flag.freezes)
    assert not lab.is_open("n1")
    wait_until(lambda: {"n1", "n2"} <= set(lab.cluster.membership().live), within_s=20, what="both to join again")
    lab.release(expect=None)
    wait_until(lambda: lab.is_open("n1") and lab.is_open("n2"), within_s=20, what="trading to resume")


def test_a_stepped_wall_clock_changes_no_deadline(make_lab: Callable[..., Lab], tmp_path: Path) -> None:
    """Time: an hour forward and two back on an agent's wall clock open nothing and close nothing."""
    if FAKETIME is None:
        why = "there is no /usr/lib/*/faketime/libfaketime.so.1; install the Debian package libfaketime"
        # A pipeline installs it, so that there a skip would be a fault that nobody sees.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    lab = make_lab()
    step = tmp_path / "faketime"
    step.write_text("+0\n")
    fake = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(step),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    lab.start_agent("n1", environment=fake)
    for offset_h in (1, -1):
        step.write_text(f"{offset_h:+d}h\n")
        wait_until(clock_is_off_by(lab, "n1", offset_h), what="the step to have taken hold")
        seen_closed = []
        until = time.monotonic() + 2 * PERMIT_S
        while time.monotonic() < until:
            if not lab.is_open("n1"):
                seen_closed.append(time.monotonic())
            time.sleep(0.02)  # samples the gate over two permits; nothing is waited for
        assert seen_closed == []
        epoch = lab.freeze(f"with the clock off by {offset_h} h").json["epoch"]
        assert not lab.is_open("n1")
        lab.release()
        assert lab.cluster.read_flag().flag.epoch == epoch + 1
        wait_until(lambda: lab.is_open("n1"), what="trading to resume")


def test_a_flag_of_an_unknown_version_is_frozen_and_never_overwritten(make_lab: Callable[..., Lab]) -> None:
    """UNKNOWN IS FROZEN: nobody overwrites a flag that cannot be read: not the command, not an agent."""
    lab = make_lab()
    lab.start_agent("n1")
    strange = b'{"v":99,"from":"the future"}'
    before = lab.store.read(lab.cluster.keys.flag)
    assert before is not None
    assert before.value is not None
    lab.store.commit({}, {lab.cluster.keys.flag: strange})
    wait_until(lambda: not lab.is_open("n1"), what="the gate to close")
    assert "cannot be read" in lab.freeze(expect=1).err
    assert "exists already" in lab.run("init", expect=5).err
    held = lab.store.read(lab.cluster.keys.flag)
    assert held is not None
    assert held.value == strange
    lab.store.commit({}, {lab.cluster.keys.flag: before.value})
    wait_until(lambda: lab.is_open("n1"), what="trading to resume")


def test_a_gate_page_removed_under_the_agent_ends_it_with_the_gate_closed(make_lab: Callable[..., Lab]) -> None:
    """UNKNOWN IS FROZEN: routers that have the old page mapped are stopped, and the agent says what happened."""
    lab = make_lab()
    agent = lab.start_agent("n1")
    with Gate.open(lab.gate_path("n1")) as mapped:
        assert mapped.allows("BTCUSDT")
        lab.gate_path("n1").unlink()
        assert agent.popen.wait(timeout=15) == 1
        assert not mapped.allows("BTCUSDT")
        assert "was removed or replaced" in agent.log.read_text()
        lab.start_agent("n1")
        wait_until(lambda: mapped.allows("BTCUSDT"), what="the reader to find the new page")


def test_a_node_that_shortens_its_permit_lets_the_longer_one_run_out_first(make_lab: Callable[..., Lab]) -> None:
    """PROOF, NOT HOPE: a record never promises a shorter permit than one that may still be running."""
    lab = make_lab()
    lab.start_agent("n1")
    lab.processes["n1"].terminate()
    key = lab.cluster.keys.under("nodes", "n1")
    longer = NodeRecord(
        node="n1", permit_ttl_ms=4_000, build="b", limits_hash="h", address="a", registered_at="t"
    )  # fmt: skip
    lab.store.commit({}, {key: longer.to_bytes()})
    began = time.monotonic()
    lab.start("n1", *lab.agent_words("n1"))
    seen: list[tuple[int, bool]] = []

    def shorter_now() -> bool:
        opened = lab.is_open("n1")  # before the record: the other way round both could change in between
        record = lab.cluster.membership().nodes["n1"]
        assert record is not None
        seen.append((record.permit_ttl_ms, opened))
        return record.permit_ttl_ms == TIMING.permit_ttl_ms

    wait_until(shorter_now, within_s=4.2 * FAULT_FACTOR, what="the record to be written anew")
    # Not a speed: the longer permit, with the clocks' tolerance, must have run out before the record says otherwise.
    assert time.monotonic() - began >= expiry_bound_ms(4_000, TIMING.clock_rate_ratio) / 1000
    assert (4_000, True) not in seen
    wait_until(lambda: lab.is_open("n1"), what="trading to begin")


def test_a_damaged_journal_keeps_the_agent_from_starting(make_lab: Callable[..., Lab]) -> None:
    """UNKNOWN IS FROZEN: an agent that cannot trust its memory ends with a sentence and leaves the gate closed."""
    lab = make_lab()
    journal = lab.state_dir("n1") / "n1.journal"
    journal.parent.mkdir(parents=True)
    journal.write_text("this was a journal\n{}\n")
    done = lab.run(*lab.agent_words("n1"), expect=1)
    assert "is damaged" in done.err
    assert not lab.is_open("n1")


def has_socket(pid: int) -> bool:
    """Tell whether a process holds a socket."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if link.readlink().name.startswith("socket:"):
                return True
    return False


def causes_on(lab: Lab, node: str) -> set[str]:
    """Ids of the causes that a node's gate page shows."""
    with Gate.open(lab.gate_path(node)) as gate:
        return {row.id for row in gate.snapshot().causes}


def vanish(router: Router) -> None:
    """End a router's link without goodbye, as the kernel does when a process dies."""
    router.link._closing.set()  # first, or it would connect again
    router.link._drop_connection()


def watch_gate(lab: Lab, node: str, done: threading.Event, seen_open: list[str]) -> None:
    while not done.wait(0.005):
        if lab.is_open(node):
            seen_open.append(node)


def readable_flag(lab: Lab) -> Any:
    """The flag, or ``None`` while there is none that can be read."""
    try:
        return lab.cluster.read_flag().flag
    except Exception:
        return None


def note_books(lab: Lab, seen: list[tuple[float, int]]) -> str:
    """Note what the books say at each look; return which run of the agent wrote the report."""
    membership = lab.cluster.membership()
    exposure = membership.exposure()
    seen.append((exposure.gross_usd, exposure.working_orders))
    return membership.reports["n1"].instance


def lost_routers(lab: Lab, node: str) -> list[str]:
    report = lab.cluster.membership().reports[node]
    return [router.router for router in report.routers if router.state == RouterPresence.LOST.value]


def clock_is_off_by(lab: Lab, node: str, hours: int) -> Callable[[], bool]:
    """Tell whether the wall clock in a node's report is this far from ours."""

    def is_off() -> bool:
        at = dt.datetime.fromisoformat(lab.cluster.membership().reports[node].at)
        return abs((at - dt.datetime.now(dt.UTC)).total_seconds() / 3600 - hours) < 0.1

    return is_off
