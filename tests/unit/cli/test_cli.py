"""The command: exit codes, pure JSON on stdout, one sentence per fault, and nothing imported that is not used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import structlog
from click.testing import CliRunner, Result

import killswitch
from killswitch import stores
from killswitch.cli import COMMANDS, cli
from killswitch.cli.read_commands import HISTORY_TIMEOUT_MS
from killswitch.cluster.cluster import Cluster
from killswitch.cluster.records import LiveRecord
from killswitch.core.flag import Flag
from killswitch.stores.memory import MemoryStore
from killswitch.stores.port import Entry, Watch
from tests.support.faulty_store import FaultyStore
from tests.unit.cluster.test_cluster import a_node, a_report, an_ack, put
from tests.unit.core.test_core_flag import AT, a_freeze

PERMIT_TTL_MS = 300
BOUND_MS = PERMIT_TTL_MS * 1.05
FAST_TIMING = f"""
timing:
  request_timeout_ms: 50
  renew_every_ms: 100
  permit_ttl_ms: {PERMIT_TTL_MS}
  lease_ttl_ms: 1000
  leader_deadline_ms: 600
  backoff_cap_ms: 100
"""
FREEZE_KEYS = {"id", "scope", "mode", "trigger", "reason", "actor", "at", "metadata"}

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings from outside; what a command has set up for its log is undone."""
    for name in list(os.environ):
        if name.upper().startswith("KILLSWITCH_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KILLSWITCH_ACTOR", "operator:ann@desk")
    yield
    structlog.reset_defaults()


@pytest.fixture
def url() -> str:
    """A store of this process that nobody else uses."""
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def cluster(url: str) -> Iterator[Cluster]:
    """The test's own view of the cluster that the command works on, at epoch 1."""
    with MemoryStore(url.removeprefix("memory://")) as store:
        made = Cluster(store, "c")
        made.initialise(actor="a", reason="r")
        yield made


@pytest.fixture
def run(url: str, tmp_path: Path) -> Run:
    """Run a command on that cluster, with a short permit."""
    config = tmp_path / "fast.yaml"
    config.write_text(FAST_TIMING, encoding="utf-8")

    def invoke(*args: str, **named: Any) -> Result:
        result = CliRunner().invoke(cli, ["--config", str(config), "--store", url, "--cluster", "c", *args], **named)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return invoke


def told(result: Result, schema: str, exit_code: int = 0) -> dict[str, Any]:
    """The one JSON document on stdout."""
    assert result.exit_code == exit_code, result.output
    body = json.loads(result.stdout)
    assert body["schema"] == f"killswitch.{schema}/1"
    return dict(body)


def freeze_now(cluster: Cluster, freeze_id: str = "f1", scope: str = "global") -> Flag:
    """A freeze by somebody else."""
    return cluster.freeze(a_freeze(freeze_id, scope), timeout_ms=1_000).flag


def go_live(cluster: Cluster, node: str = "n1") -> None:
    """A registered node with a live agent and a report."""
    put(cluster, cluster.keys.under("nodes", node), a_node(node, PERMIT_TTL_MS))
    live = LiveRecord(node=node, instance="i", pid=7, boot_id="b", gate="/g", started_at=AT)
    cluster.store.hold(cluster.keys.under("live", node), live.to_bytes(), 60_000)
    put(cluster, cluster.keys.under("reports", node), a_report(node, BTC=100.0, pnl_usd=-2.5))


@pytest.fixture
def answering(cluster: Cluster) -> Iterator[Watch]:
    """A live node n1 that acks every flag that it hears of."""
    go_live(cluster)

    def answer(entry: Entry) -> None:
        if entry.key != cluster.keys.flag:
            return
        flag = cluster.parse_flag(entry).flag
        said = an_ack("n1", epoch=flag.epoch, freezes=sorted(flag.freeze_ids()), mode=flag.mode.name)
        put(cluster, cluster.keys.under("acks", "n1"), said)

    watch = cluster.store.watch(cluster.keys.flag, answer, lambda: None)
    yield watch
    watch.close()


def contents(cluster: Cluster) -> list[Entry]:
    """All that the store holds."""
    return cluster.store.scan("")


# -- init ------------------------------------------------------------------------------------------------------------


def test_init_writes_the_first_flag_and_refuses_a_second(run: Run) -> None:
    """init exits 0 once and 5 ever after, and changes nothing then."""
    assert told(run("-o", "json", "init"), "init") == {
        "schema": "killswitch.init/1", "cluster": "c", "epoch": 1, "mode": "ACTIVE",
    }  # fmt: skip
    again = run("init")
    assert (again.exit_code, again.stdout) == (5, "")
    assert again.stderr.startswith("Error: cluster 'c' exists already in memory://")
    assert told(run("-o", "json", "status"), "status")["epoch"] == 1


# -- status and the other readers ------------------------------------------------------------------------------------


def test_status_has_the_keys_of_the_contract(run: Run, cluster: Cluster) -> None:
    """The JSON of status has its versioned keys, for the flag, each node and the leader."""
    go_live(cluster)
    put(cluster, cluster.keys.under("nodes", "n2"), a_node("n2"))
    freeze_now(cluster, "f1", "venue:bybit")
    body = told(run("-o", "json", "status"), "status")
    assert (body["cluster"], body["epoch"], body["mode"], body["leader"]) == ("c", 2, "FROZEN", None)
    (freeze,) = body["freezes"]
    assert set(freeze) == FREEZE_KEYS
    assert (freeze["id"], freeze["scope"], freeze["mode"]) == ("f1", "venue:bybit", "FROZEN")
    live, lost = body["nodes"]
    assert {"node", "state", "mode", "permit_ms_left"} <= set(live)
    assert (live["node"], live["state"], live["mode"], live["permit_ms_left"]) == ("n1", "LIVE", "ACTIVE", 900)
    assert (lost["node"], lost["state"], lost["mode"], lost["permit_ms_left"]) == ("n2", "LOST", "FROZEN", 0)


def test_status_for_people_says_the_same(run: Run, cluster: Cluster) -> None:
    """The table of status names epoch, mode, causes and nodes."""
    assert "no node is registered yet" in run("status").stdout
    go_live(cluster)
    freeze_now(cluster)
    shown = run("status").stdout
    assert "cluster c: FROZEN at epoch 2, led by nobody" in shown
    assert "f1" in shown
    assert "n1" in shown


@pytest.mark.parametrize("command", ["status", "nodes", "exposure", "history"])
@pytest.mark.parametrize("output", ["json", "table"])
def test_reading_commands_exit_0_and_keep_stdout_for_data(
    run: Run, cluster: Cluster, command: str, output: str
) -> None:
    """stdout is data and stderr is talk: with -o json stdout is one JSON document and nothing else."""
    go_live(cluster)
    freeze_now(cluster)
    result = run("-o", output, command)
    assert (result.exit_code, result.stderr) == (0, "")
    if output == "json":
        assert told(result, command)["cluster"] == "c"
    else:
        assert result.stdout.strip()


def test_exposure_says_what_could_not_be_counted(run: Run, cluster: Cluster) -> None:
    """UNKNOWN IS FROZEN: a report that cannot be read is named, not left out in silence."""
    go_live(cluster)
    put(cluster, cluster.keys.under("reports", "n9"), b"{}")
    result = run("-o", "json", "exposure")
    assert told(result, "exposure")["unreadable"] == ["n9"]
    assert "n9" in run("exposure").stderr


def test_watch_shows_the_flag_as_one_json_object_a_line(run: Run, cluster: Cluster) -> None:
    """watch prints the flag as it is now and ends after the lines that were asked for."""
    freeze_now(cluster)
    result = run("-o", "json", "watch", "--count", "1")
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["schema"] == "killswitch.watch/1"
    assert json.loads(line)["epoch"] == 2


# -- freeze ----------------------------------------------------------------------------------------------------------


def test_freeze_exits_0_when_everybody_is_proven_stopped_and_flat(run: Run, cluster: Cluster, answering: Watch) -> None:
    """PROOF, NOT HOPE: exit 0 means that each node has said so, and the JSON has the keys of the contract."""
    body = told(run("-o", "json", "freeze", "--reason", "the edge is gone"), "freeze")
    assert body["epoch"] == 2
    assert set(body["freeze"]) == FREEZE_KEYS
    assert body["freeze"]["reason"] == "the edge is gone"
    assert (body["freeze"]["scope"], body["freeze"]["mode"], body["freeze"]["trigger"]) == (
        "global",
        "FROZEN",
        "manual",
    )
    assert body["freeze"]["actor"] == "operator:ann@desk"
    assert body["committed_ms"] >= 0
    certificate = body["certificate"]
    assert (certificate["stopped"], certificate["flat"], certificate["freezes"]) == (True, True, [body["freeze"]["id"]])
    assert certificate["elapsed_ms"] > 0
    (node,) = certificate["nodes"]
    assert {"node", "state", "gated_ms", "orders_cancelled", "orders_open", "last_sequence"} <= set(node)
    assert (node["node"], node["state"], node["orders_cancelled"], node["last_sequence"]) == ("n1", "ACKED", 1, 9)
    assert cluster.read_flag().flag.freeze_ids() == {body["freeze"]["id"]}


def test_freeze_of_a_silent_node_exits_3_only_after_its_permit_has_run_out(run: Run, cluster: Cluster) -> None:
    """BOUNDED STOP: a node that never acks is waited for until its permit is over, then stopped but not flat: 3."""
    go_live(cluster)
    began_s = time.monotonic()
    body = told(run("-o", "json", "freeze", "--reason", "r"), "freeze", exit_code=3)
    assert (time.monotonic() - began_s) * 1_000 >= BOUND_MS
    certificate = body["certificate"]
    assert (certificate["stopped"], certificate["flat"]) == (True, False)
    assert [node["state"] for node in certificate["nodes"]] == ["PERMIT_EXPIRED"]
    assert certificate["elapsed_ms"] >= BOUND_MS
    assert certificate["nodes"][0]["orders_open"] == 2


def test_freeze_that_is_not_waited_for_long_enough_is_unproven(run: Run, cluster: Cluster) -> None:
    """PROOF, NOT HOPE: a time-out before the permit bound exits 3 and says that nothing is proven."""
    put(cluster, cluster.keys.under("nodes", "n1"), a_node("n1", permit_ttl_ms=600_000))
    body = told(run("-o", "json", "freeze", "--reason", "r", "--timeout", "0.1"), "freeze", exit_code=3)
    assert (body["certificate"]["stopped"], body["certificate"]["nodes"][0]["state"]) == (False, "UNPROVEN")
    assert "NOT PROVEN STOPPED" in run("freeze", "--reason", "r", "--timeout", "0.1").stdout


@pytest.mark.parametrize("number_of_stores", [1, 2])
def test_freeze_whose_store_is_gone_before_its_nodes_were_read_exits_3(
    run: Run, monkeypatch: pytest.MonkeyPatch, number_of_stores: int
) -> None:
    """PROOF, NOT HOPE: what was taken is in force: 3 with the document, never 4, which says that it may not be."""
    opened: list[FaultyStore] = []

    def open_and_cut_after_the_freeze(*_args: Any, **_named: Any) -> FaultyStore:
        store = FaultyStore(MemoryStore(uuid.uuid4().hex))
        Cluster(store, "c").initialise(actor="a", reason="r")
        real = store.commit

        def commit_and_cut(*args: Any, **named: Any) -> int:
            version = real(*args, **named)
            store.cut()
            return version

        store.commit = commit_and_cut  # type: ignore[method-assign]
        opened.append(store)
        return store

    monkeypatch.setattr(stores, "open_store", open_and_cut_after_the_freeze)
    more = ("--store", "memory://second") * (number_of_stores - 1)
    result = run(*more, "-o", "json", "freeze", "--reason", "r", "--timeout", "0.3")
    assert len(opened) == number_of_stores
    body = told(result, "freeze", exit_code=3)
    assert (body["certificate"], body["epoch"], body["freeze"]["reason"]) == (None, 2, "r")
    assert "the freeze is in force, but the nodes that must be proven stopped could not be read" in result.stderr


def test_freeze_without_waiting_exits_3(run: Run, cluster: Cluster) -> None:
    """PROOF, NOT HOPE: --no-wait has written the freeze and proven nothing."""
    body = told(run("-o", "json", "freeze", "--reason", "r", "--no-wait"), "freeze", exit_code=3)
    assert body["certificate"] is None
    assert cluster.read_flag().flag.mode.name == "FROZEN"


def test_each_scope_of_a_freeze_is_a_cause_of_its_own(run: Run, cluster: Cluster) -> None:
    """Each --scope is a freeze of its own, in the mode that was asked for."""
    args = ("--scope", "venue:bybit,symbol:BTC", "--scope", "node:n7", "--mode", "reduce-only")
    body = told(run("-o", "json", "freeze", "--reason", "r", *args), "freeze")
    assert body["epoch"] == 3
    assert [freeze["scope"] for freeze in body["freezes"]] == ["venue:bybit,symbol:BTC", "node:n7"]
    assert body["freeze"] == body["freezes"][0]
    assert {cause.mode.name for cause in cluster.read_flag().flag.freezes} == {"REDUCE_ONLY"}


def test_freeze_with_a_reason_that_is_not_utf8_freezes(run: Run, cluster: Cluster) -> None:
    """ONE VOICE FREEZES: an operator at a terminal of another alphabet is not turned away."""
    assert run("freeze", "--reason", "gr\udcfc\udcdf").exit_code == 0
    assert cluster.read_flag().flag.freezes[0].reason == "gr??"


# -- release ---------------------------------------------------------------------------------------------------------


def test_release_without_yes_and_without_a_terminal_refuses(run: Run, cluster: Cluster) -> None:
    """RELEASE IS FENCED: where nobody can be asked nothing is lifted."""
    freeze_now(cluster)
    before = contents(cluster)
    result = run("release", "--epoch", "2", "--reason", "r")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "give --yes where nobody can answer" in result.stderr
    assert "lift  f1  FROZEN global" in result.stderr
    assert contents(cluster) == before


@pytest.mark.parametrize(("answer", "exit_code"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_release_on_a_terminal_asks(
    run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, answer: str, exit_code: int
) -> None:
    """RELEASE IS FENCED: on a terminal the release asks, and only a yes lifts."""
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    freeze_now(cluster)
    result = run("release", "--epoch", "2", "--reason", "r", input=answer)
    assert result.exit_code == exit_code
    assert "Lift 1 of 1 freezes of cluster 'c'?" in result.stderr
    assert cluster.read_flag().flag.freeze_ids() == (set() if exit_code == 0 else {"f1"})


def test_release_lifts_what_is_named_and_says_what_is_left(run: Run, cluster: Cluster) -> None:
    """RELEASE IS FENCED: by id or by scope exactly the named freezes go; the others are told."""
    for freeze_id, scope in (("f1", "global"), ("f2", "venue:bybit"), ("f3", "venue:bybit")):
        freeze_now(cluster, freeze_id, scope)
    args = ("release", "--reason", "looked", "--yes")
    body = told(run("-o", "json", *args, "--epoch", "4", "--scope", "venue:bybit"), "release")
    assert (body["epoch"], body["lifted"], body["confirmed"]) == (5, ["f2", "f3"], True)
    assert [freeze["id"] for freeze in body["freezes"]] == ["f1"]
    assert told(run("-o", "json", *args, "--epoch", "5", "--freeze", "f1"), "release")["mode"] == "ACTIVE"
    _, entry = cluster.history()[-1]
    assert (entry.kind, entry.actor, entry.reason) == ("release", "operator:ann@desk", "looked")


@pytest.mark.parametrize(
    "args",
    [
        ("--epoch", "1"),
        ("--epoch", "3"),
        ("--epoch", "2", "--freeze", "gone"),
        ("--epoch", "2", "--scope", "venue:kraken"),
        ("--epoch", "2", "--freeze", "f1", "--freeze", "gone"),
    ],
)
def test_release_of_something_else_exits_5_and_changes_nothing(
    run: Run, cluster: Cluster, args: tuple[str, ...]
) -> None:
    """RELEASE IS FENCED: another epoch, an unknown id or scope is a conflict, and nothing is lifted."""
    freeze_now(cluster)
    before = contents(cluster)
    result = run("release", "--reason", "r", "--yes", *args)
    assert (result.exit_code, result.stdout) == (5, "")
    assert contents(cluster) == before


def test_release_that_a_live_node_does_not_confirm_exits_3(run: Run, cluster: Cluster) -> None:
    """PROOF, NOT HOPE: a release is done when each live node has taken it over; in force but unconfirmed is 3."""
    go_live(cluster)
    freeze_now(cluster)
    result = run("-o", "json", "release", "--epoch", "2", "--reason", "r", "--yes", "--timeout", "0.1")
    assert told(result, "release", exit_code=3)["confirmed"] is False
    assert cluster.read_flag().flag.freezes == ()


def test_release_that_each_live_node_confirms_exits_0(run: Run, cluster: Cluster, answering: Watch) -> None:
    """PROOF, NOT HOPE: with every live node's ack of the new epoch a release exits 0."""
    freeze_now(cluster)
    result = run("-o", "json", "release", "--epoch", "2", "--reason", "r", "--yes")
    assert told(result, "release")["confirmed"] is True


# -- nodes, nodes forget ---------------------------------------------------------------------------------------------


@pytest.fixture
def lost(cluster: Cluster) -> str:
    """A registered node without a live agent, with a position and working orders."""
    put(cluster, cluster.keys.under("nodes", "n2"), a_node("n2", PERMIT_TTL_MS))
    put(cluster, cluster.keys.under("reports", "n2"), a_report("n2", working_orders=3, BTC=-1250.0))
    return "n2"


def test_nodes_lists_without_a_subcommand(run: Run, lost: str) -> None:
    """`killswitch nodes` goes on listing, as a table and as JSON."""
    (line,) = told(run("-o", "json", "nodes"), "nodes")["nodes"]
    assert (line["node"], line["state"], line["working_orders"]) == ("n2", "LOST", 3)
    assert "LOST" in run("nodes").stdout


def test_forget_shows_what_goes_and_takes_the_node_out_of_the_books(run: Run, cluster: Cluster, lost: str) -> None:
    """NOTHING IS LOST: the person sees what the node held last, that nothing is cancelled, and the history has it."""
    began = time.monotonic()
    result = run("nodes", "forget", "n2", "--yes", "--reason", "sold")
    assert time.monotonic() - began >= BOUND_MS / 1000
    assert (result.exit_code, result.stdout) == (
        0,
        "forgotten: node n2 at epoch 2; its last report is in the history\n",
    )
    assert "BTC  -1250 = -1,250.00 USD" in result.stderr
    assert "3 working orders" in result.stderr
    assert "nothing here cancels them" in result.stderr
    assert cluster.membership().nodes == {}
    shown = run("history", "--verify").stdout
    assert "node n2: sold" in shown
    assert "verified: 2 entries" in shown


def test_forget_as_json_says_everything(run: Run, cluster: Cluster, lost: str) -> None:
    """One document: the epoch, the hash to keep, and all that was known of the node."""
    freeze_now(cluster)
    body = told(run("-o", "json", "nodes", "forget", "n2", "--yes"), "forget")
    assert (body["cluster"], body["node"], body["epoch"], body["mode"]) == ("c", "n2", 3, "FROZEN")
    assert body["forgotten"]["report"]["holdings"]["BTC"]["notional_usd"] == -1250.0
    _, entry = cluster.history()[-1]
    assert (entry.hash, entry.actor, entry.reason) == (body["history_hash"], "operator:ann@desk", body["reason"])
    assert entry.forgotten == body["forgotten"]
    assert told(run("-o", "json", "history"), "history")["entries"][-1]["forgotten"] == body["forgotten"]


def test_forget_without_yes_and_without_a_terminal_refuses(run: Run, cluster: Cluster, lost: str) -> None:
    """Where nobody can be asked nothing is forgotten."""
    before = contents(cluster)
    result = run("nodes", "forget", "n2")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "give --yes where nobody can answer" in result.stderr
    assert "gross" in result.stderr
    assert contents(cluster) == before


@pytest.mark.usefixtures("lost")
@pytest.mark.parametrize(("answer", "exit_code"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_forget_on_a_terminal_asks(
    run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, answer: str, exit_code: int
) -> None:
    """On a terminal it asks, and only a yes forgets."""
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    result = run("nodes", "forget", "n2", input=answer)
    assert result.exit_code == exit_code
    assert "Forget node 'n2' of cluster 'c'?" in result.stderr
    assert ("n2" in cluster.membership().nodes) is (exit_code != 0)


@pytest.mark.parametrize(("node", "says"), [("n1", "node 'n1' is alive"), ("n9", "knows no node 'n9'")])
def test_forget_of_a_live_or_unknown_node_exits_5_and_changes_nothing(
    run: Run, cluster: Cluster, node: str, says: str
) -> None:
    """PROOF, NOT HOPE: who may hold a permit stays in the books; a mistyped name is told."""
    go_live(cluster)
    before = contents(cluster)
    result = run("nodes", "forget", node, "--yes")
    assert (result.exit_code, result.stdout) == (5, "")
    assert says in result.stderr
    assert contents(cluster) == before


def test_forget_of_a_node_that_never_reported_says_that_nothing_is_known(run: Run, cluster: Cluster) -> None:
    """A person who forgets such a node must know that nobody knows what it holds."""
    put(cluster, cluster.keys.under("nodes", "n2"), b"{}")
    result = run("nodes", "forget", "n2", "--yes")
    assert result.exit_code == 0
    assert "it never made a report: what it holds is not known" in result.stderr
    assert "only you can know that its machine is off" in result.stderr


@pytest.fixture
def second() -> Iterator[Cluster]:
    """The same cluster in another store, with the same lost node."""
    with MemoryStore(uuid.uuid4().hex) as store:
        made = Cluster(store, "c")
        made.initialise(actor="a", reason="r")
        put(made, made.keys.under("nodes", "n2"), a_node("n2", PERMIT_TTL_MS))
        yield made


@pytest.mark.usefixtures("lost")
def test_forget_takes_the_node_out_of_every_store_so_that_no_certificate_names_it(
    run: Run, cluster: Cluster, second: Cluster
) -> None:
    """PROOF, NOT HOPE: a node that one store remembers would stay unproven in the certificate of all."""
    both = ("--store", second.store.address)
    named = told(run(*both, "-o", "json", "freeze", "--reason", "r", "--timeout", "0.1"), "freeze", exit_code=3)
    assert [node["node"] for node in named["certificate"]["nodes"]] == ["n2"]
    body = told(run(*both, "-o", "json", "nodes", "forget", "n2", "--yes"), "forget")
    assert [(one["store"], one["epoch"]) for one in body["stores"]] == [
        (cluster.store.address, 3),
        (second.store.address, 3),
    ]
    assert body["stores"][0]["forgotten"] == body["forgotten"]
    again = told(run(*both, "-o", "json", "freeze", "--reason", "r"), "freeze")
    assert again["certificate"]["nodes"] == []


@pytest.mark.usefixtures("lost")
def test_forget_says_of_each_store_what_it_forgets_there(run: Run, cluster: Cluster, second: Cluster) -> None:
    """The figures of one store may be older than those of another."""
    result = run("--store", second.store.address, "nodes", "forget", "n2", "--yes")
    assert result.exit_code == 0
    for one in (cluster, second):
        assert f"forget  node n2 in {one.store.address}" in result.stderr
        assert f"forgotten in {one.store.address}: node n2 at epoch 2" in result.stdout


@pytest.mark.usefixtures("lost")
def test_forget_while_one_store_is_away_forgets_nowhere_and_says_what_to_run(run: Run, cluster: Cluster) -> None:
    """Exit 4, with the command for each store, letter by letter."""
    before = contents(cluster)
    result = run("--store", "etcd://127.0.0.1:1", "nodes", "forget", "n2", "--yes")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "nothing was forgotten, because the node would stay in the certificates of that store" in result.stderr
    for address in (cluster.store.address, "etcd://127.0.0.1:1"):
        assert f"`killswitch --store {address} --cluster c nodes forget n2`" in result.stderr
    assert contents(cluster) == before


# -- history ---------------------------------------------------------------------------------------------------------


def test_history_verified_exits_0_on_a_clean_chain(run: Run, cluster: Cluster) -> None:
    """NOTHING IS LOST: every change is shown, and a clean chain verifies."""
    freeze_now(cluster)
    body = told(run("-o", "json", "history", "--verify"), "history")
    assert (body["verified"], body["faults"]) == (True, [])
    assert [entry["kind"] for entry in body["entries"]] == ["init", "freeze"]
    assert "verified: 2 entries" in run("history", "--verify").stdout
    assert told(run("-o", "json", "history", "--limit", "1"), "history")["verified"] is None


@pytest.mark.parametrize("tamper", ["edited", "deleted", "flag", "unreadable"])
def test_history_verified_exits_1_on_a_tampered_store(run: Run, cluster: Cluster, tamper: str) -> None:
    """NOTHING IS LOST: whatever was done to the store with its own tools, verifying exits 1 and says where."""
    freeze_now(cluster)
    key = cluster.keys.flag if tamper == "flag" else cluster.keys.history(1)
    entry = cluster.store.read(key)
    assert entry is not None
    if tamper == "deleted":
        cluster.store.commit({}, {}, [key])
    elif tamper == "unreadable":
        put(cluster, key, (entry.value or b"")[:-5])
    else:
        body = json.loads(entry.value or b"")
        body |= {"freezes": [], "mode": "ACTIVE"} if tamper == "flag" else {"reason": "it was nothing"}
        put(cluster, key, json.dumps(body).encode())
    result = run("history", "--verify")
    assert result.exit_code == 1
    assert {"edited": "epoch 1: changed", "deleted": "epoch 1: missing", "flag": "epoch 2: head"}.get(
        tamper, "history/000000000001 cannot be read"
    ) in result.stderr
    if tamper != "unreadable":
        as_json = told(run("-o", "json", "history", "--verify"), "history", exit_code=1)
        assert as_json["verified"] is False
        assert as_json["faults"][0]["sentence"]


# -- faults: one sentence and an exit code ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ("freeze",),
        ("freeze", "--reason", "r", "--scope", "galaxy"),
        ("freeze", "--reason", "r", "--scope", "venue:a,venue:b"),
        ("freeze", "--reason", "r", "--mode", "halt"),
        ("freeze", "--reason", "r", "--mode", "active"),
        ("freeze", "--reason", ""),
        ("freeze", "--reason", "r", "--trigger", "x" * 40),
        ("freeze", "--reason", "r", "--timeout", "0"),
        ("release", "--reason", "r", "--yes"),
        ("release", "--epoch", "0", "--reason", "r", "--yes"),
        ("release", "--epoch", "one", "--reason", "r", "--yes"),
        ("release", "--epoch", "1", "--yes"),
        ("release", "--epoch", "1", "--reason", "r", "--yes", "--scope", "global", "--freeze", "f1"),
        ("release", "--epoch", "1", "--reason", "r", "--yes", "--scope", "galaxy"),
        ("history", "--limit", "0"),
        ("nodes", "forget"),
        ("nodes", "no-such-command"),
        ("no-such-command",),
        ("status", "--no-such-option"),
        ("-o", "xml", "status"),
        ("agent", "run", "--node", "a/b"),
        ("--config", "/no/such/file.yaml", "init"),
        ("--cluster", "a/b", "status"),
    ],
)
def test_a_wrong_use_exits_2_and_changes_nothing(run: Run, cluster: Cluster, args: tuple[str, ...]) -> None:
    """A usage error is exit 2 with a sentence on stderr, before anything is written."""
    before = contents(cluster)
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: " in result.stderr
    assert contents(cluster) == before


@pytest.mark.parametrize(
    "args",
    [
        ("status",),
        ("freeze", "--reason", "r"),
        ("release", "--epoch", "1", "--reason", "r", "--yes"),
        ("history",),
        ("nodes", "forget", "n1", "--yes"),
    ],
)
def test_a_cluster_without_a_flag_exits_1_and_says_what_to_do(run: Run, args: tuple[str, ...]) -> None:
    """UNKNOWN IS FROZEN: before init every command says that the gates stay closed, and how to begin."""
    if args == ("history",):
        args = ("history", "--verify")
    result = run(*args)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "every gate stays closed until `killswitch --cluster c init`" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("status",),
        ("freeze", "--reason", "r"),
        ("release", "--epoch", "1", "--reason", "r", "--yes"),
        ("nodes", "forget", "n1", "--yes"),
    ],
)
def test_an_unreadable_flag_exits_1_and_is_left_alone(run: Run, cluster: Cluster, args: tuple[str, ...]) -> None:
    """UNKNOWN IS FROZEN: a flag that cannot be read is told by its key and never overwritten."""
    put(cluster, cluster.keys.flag, b"\x00")
    before = contents(cluster)
    result = run(*args)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: key /killswitch/c/flag cannot be read")
    assert contents(cluster) == before


@pytest.mark.parametrize(
    "args",
    [
        ("init",),
        ("status",),
        ("nodes",),
        ("nodes", "forget", "n1", "--yes"),
        ("exposure",),
        ("history",),
        ("watch",),
        ("freeze", "--reason", "r", "--timeout", "0.2"),
        ("release", "--epoch", "1", "--reason", "r", "--yes"),
    ],
)
def test_a_store_that_does_not_answer_exits_4_in_one_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
) -> None:
    """A store that is not there is exit 4, one line on stderr, nothing on stdout, and never a traceback."""
    store = FaultyStore(MemoryStore(uuid.uuid4().hex))
    store.cut()
    monkeypatch.setattr(stores, "open_store", lambda *_args, **_named: store)
    result = run("-o", "json", *args)
    assert store.failed_calls > 0
    assert (result.exit_code, result.stdout) == (4, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert ("the freeze is NOT in force" in line) is (args[0] == "freeze")


def test_an_etcd_that_is_not_there_exits_4_in_one_line() -> None:
    """The same holds for the real store and the real process: exit 4, one line, no traceback."""
    args = [sys.executable, "-m", "killswitch", "--store", "etcd://127.0.0.1:1", "status"]
    done = subprocess.run(args, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: etcd at 127.0.0.1:1 did not answer")


@pytest.mark.parametrize(
    ("args", "request_timeout_ms"), [(("history", "--verify"), HISTORY_TIMEOUT_MS), (("status",), 50)]
)
def test_a_long_history_has_longer_than_what_a_gate_waits_for(
    run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], request_timeout_ms: int
) -> None:
    """NOTHING IS LOST: a history of years can be read and verified, though the time for one call is short elsewhere."""
    asked: list[int] = []
    real = stores.open_store

    def watched(url: str, **named: Any) -> Any:
        asked.append(named["request_timeout_ms"])
        return real(url, **named)

    monkeypatch.setattr(stores, "open_store", watched)
    assert run(*args).exit_code == 0
    assert asked == [request_timeout_ms]


@pytest.mark.parametrize("store", ["nonsense", "mysql://h", "etcd://h:99999", "embedded://"])
def test_a_store_url_that_is_not_understood_exits_2_in_one_sentence(store: str) -> None:
    """A mistyped URL is a usage error with what to write instead, never a traceback."""
    result = CliRunner().invoke(cli, ["--store", store, "status"])
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert "write " in line


def test_every_fault_of_the_settings_is_told(tmp_path: Path) -> None:
    """config check exits 2 with one line for each fault."""
    path = tmp_path / "broken.yaml"
    path.write_text("clustr: a\ntiming: {permit_ttl_ms: 200}\n", encoding="utf-8")
    result = CliRunner().invoke(cli, ["--config", str(path), "config", "check"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "did you mean 'cluster'?" in result.stderr
    assert "3 * renew_every_ms (1500) must be <= permit_ttl_ms (200)" in result.stderr


# -- config ----------------------------------------------------------------------------------------------------------


def test_config_check_says_the_worst_case(run: Run) -> None:
    """BOUNDED STOP: what the settings promise is printed in milliseconds, and in JSON."""
    shown = run("config", "check").stdout
    assert "every router stops within 158 ms of a freeze" in shown
    assert "or by itself within 315 ms" in shown
    body = told(run("-o", "json", "config", "check"), "config.check")
    assert body["worst_case"]["unreachable_ms"] == BOUND_MS


@pytest.mark.parametrize(
    ("store", "failover_ms"),
    [
        ("memory://m", 7245 + 250),
        ("embedded:///nowhere", 7245 + 3000),
        ("etcd://h:2379", 7245 + 3000),
        ("redis://h", 7245 + 1500),
        ("redis+sentinel://h/name", 7245 + 1500),
        ("zookeeper://h", 7245 + 3000),
        ("redis://h etcd://h:2379", 7245 + 3000),
    ],
)
def test_the_time_of_a_failover_holds_what_the_store_may_keep_a_lease_too_long(
    store: str, failover_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PROOF, NOT HOPE: what is printed is a bound on this store; of several stores, on the one that is latest."""
    monkeypatch.setenv("KILLSWITCH_STORE", store)
    shown = CliRunner().invoke(cli, ["config", "check"]).stdout
    assert f"a standby coordinator leads within {failover_ms} ms of the leader's death" in shown
    body = json.loads(CliRunner().invoke(cli, ["-o", "json", "config", "check"]).stdout)
    assert body["worst_case"]["failover_ms"] == failover_ms


def test_config_show_prints_the_settings_in_force(run: Run, url: str) -> None:
    """config show has file, environment and options applied, and its text can be a file again."""
    body = told(run("-o", "json", "config", "show"), "config.show")
    assert body["settings"]["store"] == url
    assert body["settings"]["timing"]["permit_ttl_ms"] == PERMIT_TTL_MS
    assert f"store: {url}\n" in run("config", "show").stdout


def test_config_schema_is_json(run: Run) -> None:
    """config schema prints a JSON schema."""
    assert json.loads(run("config", "schema").stdout)["title"]


def test_a_package_that_took_our_name_stops_no_freeze(tmp_path: Path, url: str) -> None:
    """ONE VOICE FREEZES: where somebody else's distribution wrote over ``killswitch/__init__.py``."""
    theirs = tmp_path / "killswitch" / "__init__.py"
    theirs.parent.mkdir()
    theirs.write_text(f"__path__ = [{str(Path(killswitch.__file__).parent)!r}]\n")
    code = (
        "import sys, killswitch; from click.testing import CliRunner; from killswitch.cli import cli\n"
        "assert not hasattr(killswitch, 'Gate')\n"
        f"words = ['--store', {url!r}, '--cluster', 'c']\n"
        "with __import__('killswitch.stores', fromlist=['open_store']).open_store(words[1]):\n"
        "    assert CliRunner().invoke(cli, [*words, 'init']).exit_code == 0\n"
        "    sys.exit(CliRunner().invoke(cli, [*words, 'freeze', '--reason', 'r', '--no-wait']).exit_code)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr


def test_gate_include_is_where_the_c_header_is(run: Run) -> None:
    """The path goes straight into `cc -I`, so stdout holds nothing else."""
    result = run("gate", "--include")
    assert result.exit_code == 0
    assert (Path(result.stdout.removesuffix("\n")) / "killswitch_gate.h").is_file()


@pytest.mark.parametrize("columns", ["wide", "", "-5", "12.5", "0"])
def test_a_width_that_is_no_number_cuts_nothing(run: Run, cluster: Cluster, columns: str) -> None:
    """A mistyped COLUMNS is not worth an error: the table has the width that a pipe gets."""
    put(cluster, cluster.keys.under("nodes", "n1"), a_node("n1"))
    told_plain = run("nodes", env={"COLUMNS": "160"})
    result = run("nodes", env={"COLUMNS": columns})
    assert (result.exit_code, result.stdout) == (0, told_plain.stdout)


@pytest.mark.parametrize("command", [("agent", "run", "--node"), ("coordinator", "run", "--id")])
@pytest.mark.parametrize("name", ["n9\n", "", "a/b", "-n", "n" * 64, "n\u0663"])
def test_a_name_that_no_key_takes_is_refused(run: Run, command: tuple[str, ...], name: str) -> None:
    """A line break at the end, too: it would be another node for every reader that strips it."""
    result = run(*command[:-1], f"{command[-1]}={name}")
    assert result.exit_code == 2
    assert f"{command[-1]} {name!r}: a name is made of" in result.stderr


def test_a_gate_that_is_not_there_exits_1(run: Run, tmp_path: Path) -> None:
    """The gate command needs no store, and says when there is no page."""
    result = run("gate", str(tmp_path / "no-gate"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: there is no gate page at")


# -- what is imported ------------------------------------------------------------------------------------------------

HEAVY = ("grpc", "pydantic", "pyetcd", "yaml", "rich", "structlog", "prometheus_client", "tenacity")


def _imported_by(*args: str) -> list[str]:
    code = (
        "import json, sys\n"
        "from killswitch.cli import cli\n"
        "try:\n    cli(sys.argv[1:], prog_name='killswitch')\n"
        "except SystemExit as end:\n    code = end.code\n"
        f"print(json.dumps([code, [name for name in {HEAVY!r} if name in sys.modules]]), file=sys.stderr)\n"
    )
    run = [sys.executable, "-c", code, *args]
    done = subprocess.run(run, capture_output=True, text=True, timeout=50, check=True)
    code_of_run, heavy = json.loads(done.stderr.splitlines()[-1])
    assert code_of_run in {0, None}
    assert "Usage: killswitch" in done.stdout
    return list(heavy)


@pytest.mark.parametrize(
    "args",
    [("--help",), ("freeze", "--help"), ("release", "--help"), ("status", "--help"), ("nodes", "forget", "--help")],
)
def test_help_imports_no_client_library(args: tuple[str, ...]) -> None:
    """The freeze must start quickly: --help imports neither grpc nor pydantic, nor anything else that is slow."""
    assert _imported_by(*args) == []


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_can_be_imported_and_has_help(run: Run, name: str) -> None:
    """Every command that --help lists exists and explains itself."""
    command = cli.get_command(click.Context(cli), name)  # type: ignore[attr-defined]
    assert command is not None
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"{name} [OPTIONS]" in result.stdout
