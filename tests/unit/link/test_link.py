"""The link: real sockets, a real gate page, the router's half against the agent's half."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from killswitch_agent.link_server import FreezeRequest, LinkEvents, LinkServer, LinkUnavailable
from killswitch_agent.routers import RouterPresence, RouterRegistry, answer_of, exposure_of

from killswitch import Gate
from killswitch.clock import now_ns
from killswitch.core.flag import Freeze
from killswitch.core.modes import Mode
from killswitch.core.scopes import Scope
from killswitch.gate import GateWriter
from killswitch.link import BadLine, CancelResult, Exposure, Holding, RouterLink, Stop, StopCause
from killswitch.link.messages import decode, encode
from tests.support.waiting import wait_until

SECOND_NS = 1_000_000_000


def stop_cause(scope: str = "global", freeze_id: str = "f1") -> StopCause:
    return StopCause(freeze_id, Scope.parse(scope), Mode.FROZEN, "manual", "a test")


class AgentEnd:
    """The agent's half of the link, with what it heard."""

    def __init__(self, folder: Path, routers: RouterRegistry | None = None) -> None:
        self.path = folder / "agent.sock"
        self.routers = routers or RouterRegistry()
        self.freezes: list[FreezeRequest] = []
        self.exposures: list[Exposure] = []
        self.answers: list[CancelResult] = []
        self.stop: tuple[int, Sequence[StopCause]] = (1, [])
        self.open()

    def open(self) -> None:
        self.server = LinkServer(
            self.path,
            node="n1",
            cluster="c",
            routers=self.routers,
            events=LinkEvents(
                on_exposure=lambda _, exposure: self.exposures.append(exposure),
                on_answer=self._keep_answer,
                on_freeze=self.freezes.append,
                current_stop=lambda: self.stop,
            ),
        )

    def _keep_answer(self, router: str) -> None:
        """Keep every answer: the registry has the newest of each router alone."""
        self.answers += [state.result for state in self.routers.states() if state.router == router and state.result]

    def presence(self, router: str) -> RouterPresence | None:
        return next((state.presence for state in self.routers.states() if state.router == router), None)


class Trader:
    """A trading program's stand-in: cancels what it is told to, and remembers it."""

    def __init__(self, working: int = 3) -> None:
        self.working = working
        self.stops: list[Stop] = []
        self.fails = False
        self.leaves_open = 0

    def cancel(self, stop: Stop) -> CancelResult:
        self.stops.append(stop)
        if self.fails:
            raise RuntimeError("the venue client broke")
        cancelled, self.working = self.working - self.leaves_open, self.leaves_open
        self.leaves_open = 0
        return CancelResult(cancelled=cancelled, failed=0, open=self.working, last_sequence=17)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentEnd]:
    """The agent's end of the link, listening."""
    end = AgentEnd(tmp_path)
    yield end
    end.server.close()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[GateWriter]:
    """An open gate."""
    with GateWriter(tmp_path / "gate", cluster="c", node="n1") as gate:
        gate.update([], epoch=1, permit_deadline_ns=now_ns() + 60 * SECOND_NS)
        yield gate


@pytest.fixture
def make_link(agent: AgentEnd, writer: GateWriter, tmp_path: Path) -> Iterator[Callable[..., RouterLink]]:
    """Make router links that are closed at the end."""
    made: list[RouterLink] = []
    gates: list[Gate] = []

    def make(trader: Trader, router: str = "r1", **options: Any) -> RouterLink:
        gates.append(Gate.open(tmp_path / "gate"))
        link = RouterLink(agent.path, router=router, gate=gates[-1], on_stop=trader.cancel, **options)
        made.append(link)
        link.start()
        return link

    yield make
    for link in made:
        link.close()
    for gate in gates:
        gate.close()


def test_a_pushed_stop_is_cancelled_and_answered(agent: AgentEnd, make_link: Callable[..., RouterLink]) -> None:
    """PROOF, NOT HOPE: the agent learns how many orders were cancelled and the last sequence number sent."""
    trader = Trader(working=3)
    make_link(trader)
    wait_until(lambda: agent.presence("r1") is RouterPresence.LIVE, what="the hello")
    agent.server.push_stop(7, [stop_cause("symbol:BTC")])
    wait_until(lambda: answer_of(agent.routers.states(), 7).complete, what="the answer")
    answer = answer_of(agent.routers.states(), 7)
    assert (answer.cancelled, answer.open, answer.last_sequence) == (3, 0, 17)
    assert trader.stops[0].covers({"symbol": "BTC"})
    assert not trader.stops[0].covers({"symbol": "ETH"})


def test_a_router_that_connects_while_frozen_is_told_at_once(
    agent: AgentEnd, make_link: Callable[..., RouterLink]
) -> None:
    """UNKNOWN IS FROZEN: a router that comes late hears the stop in force."""
    agent.stop = (4, [stop_cause()])
    make_link(Trader(working=0))
    wait_until(lambda: answer_of(agent.routers.states(), 4).complete and agent.routers.states(), what="the answer")


def test_without_an_agent_the_gate_alone_makes_the_router_cancel(
    agent: AgentEnd, writer: GateWriter, make_link: Callable[..., RouterLink]
) -> None:
    """BOUNDED STOP, and A CANCEL ALWAYS PASSES: with the agent gone, the expired permit has everything cancelled."""
    writer.update([], epoch=2, permit_deadline_ns=now_ns() + 60 * SECOND_NS)
    trader = Trader(working=5)
    make_link(trader, gate_poll_ms=5)
    agent.server.close()
    assert trader.stops == []
    writer.extend(0)
    wait_until(lambda: trader.working == 0, what="the cancelling")
    assert trader.stops[0].permit_expired
    assert trader.stops[0].covers({"symbol": "anything"})
    agent.open()


def test_orders_cancelled_before_the_push_came_are_counted_in_its_answer(
    agent: AgentEnd, writer: GateWriter, make_link: Callable[..., RouterLink]
) -> None:
    """PROOF, NOT HOPE: whichever path stops first, the certificate counts the orders once and all."""
    trader = Trader(working=4)
    make_link(trader, gate_poll_ms=5)
    wait_until(lambda: agent.presence("r1") is RouterPresence.LIVE, what="the hello")
    freeze = Freeze("f1", Scope(), Mode.FROZEN, "manual", "a test", "operator:test", "now")
    writer.update([freeze], epoch=3, permit_deadline_ns=now_ns() + 60 * SECOND_NS)
    wait_until(lambda: trader.working == 0, what="the cancelling by the page")
    agent.server.push_stop(4, [stop_cause()])
    wait_until(lambda: answer_of(agent.routers.states(), 4).complete, what="the answer to the push")
    assert answer_of(agent.routers.states(), 4).cancelled == 4


def test_what_is_left_open_is_cancelled_again_until_it_is_gone(
    agent: AgentEnd, writer: GateWriter, make_link: Callable[..., RouterLink]
) -> None:
    """PROOF, NOT HOPE: flat is said when nothing is left, and not before."""
    trader = Trader(working=3)
    trader.leaves_open = 1
    make_link(trader)
    wait_until(lambda: agent.presence("r1") is RouterPresence.LIVE, what="the hello")
    freeze = Freeze("f1", Scope(), Mode.FROZEN, "manual", "a test", "operator:test", "now")
    writer.update([freeze], epoch=3, permit_deadline_ns=now_ns() + 60 * SECOND_NS)
    agent.server.push_stop(3, [stop_cause()])
    wait_until(lambda: any(answer.open == 1 for answer in agent.answers), what="one open")
    wait_until(lambda: answer_of(agent.routers.states(), 3).open == 0, what="the last order to go")
    assert answer_of(agent.routers.states(), 3).cancelled == 3


def test_a_trading_program_that_fails_to_cancel_proves_nothing(
    agent: AgentEnd, make_link: Callable[..., RouterLink]
) -> None:
    """PROOF, NOT HOPE: an exception in the cancelling is told as an open order."""
    trader = Trader()
    trader.fails = True
    make_link(trader)
    wait_until(lambda: agent.presence("r1") is RouterPresence.LIVE, what="the hello")
    agent.server.push_stop(2, [stop_cause()])
    wait_until(lambda: answer_of(agent.routers.states(), 2).complete, what="the answer")
    assert answer_of(agent.routers.states(), 2).open == 1


def test_a_gate_that_breaks_under_the_router_stops_everything_and_the_link_goes_on(
    agent: AgentEnd, writer: GateWriter, make_link: Callable[..., RouterLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    """UNKNOWN IS FROZEN: an unforeseen error in reading the gate cancels everything, and a push is still answered."""
    trader = Trader(working=2)
    make_link(trader, gate_poll_ms=5)
    wait_until(lambda: agent.presence("r1") is RouterPresence.LIVE, what="the hello")

    def broken(_: Gate) -> None:
        raise OSError("the page is gone")

    monkeypatch.setattr(Gate, "snapshot", broken)
    writer.extend(0)
    wait_until(lambda: trader.working == 0, what="the cancelling")
    agent.server.push_stop(9, [stop_cause()])
    wait_until(lambda: answer_of(agent.routers.states(), 9).complete, what="the answer")


def test_a_router_that_vanishes_leaves_its_working_orders_unproven(agent: AgentEnd) -> None:
    """PROOF, NOT HOPE: a broken connection without goodbye is noticed, and its orders stay in the count."""
    connection = raw_router(agent, "r9")
    connection.sendall(encode("exposure", **Exposure(working_orders=6, last_sequence=40).to_wire()))
    wait_until(lambda: exposure_of(agent.routers.states()).working_orders == 6, what="the report")
    connection.close()
    wait_until(lambda: agent.presence("r9") is RouterPresence.LOST, what="the loss to be noticed")
    answer = answer_of(agent.routers.states(), 5)
    assert (answer.complete, answer.open, answer.last_sequence) == (True, 6, 40)


def test_a_new_run_of_a_lost_router_accounts_for_its_orders_only_when_it_asked_the_venue(
    agent: AgentEnd,
) -> None:
    """PROOF, NOT HOPE: a fresh start under the same name does not make the orders of the old run vanish."""
    first = raw_router(agent, "r9", instance="a")
    first.sendall(encode("exposure", **Exposure(working_orders=6).to_wire()))
    wait_until(lambda: exposure_of(agent.routers.states()).working_orders == 6, what="the report")
    first.close()
    wait_until(lambda: agent.presence("r9") is RouterPresence.LOST, what="the loss")
    second = raw_router(agent, "r9", instance="b")
    assert exposure_of(agent.routers.states()).working_orders == 6
    second.close()
    wait_until(lambda: agent.presence("r9") is RouterPresence.LOST, what="the second loss")
    third = raw_router(agent, "r9", instance="c", reconciled=True)
    assert exposure_of(agent.routers.states()).working_orders == 0
    third.close()


def test_two_routers_of_one_name_are_refused_with_a_sentence(agent: AgentEnd) -> None:
    """A name belongs to one process at a time."""
    first = raw_router(agent, "r1", instance="a")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as second, second.makefile("rb") as lines:
        second.connect(str(agent.path))
        second.sendall(encode("hello", router="r1", instance="b", pid=1, reconciled=False))
        kind, body = decode(lines.readline())
    assert kind == "refused"
    assert "own name" in body["reason"]
    first.close()


@pytest.mark.parametrize(
    "exposure",
    [
        {"holdings": {"BTC": {"quantity": 1.0, "mark_price_usd": 0.0}}},
        {"holdings": {"BTC": {"quantity": 1.0, "mark_price_usd": -5.0}}},
        {"holdings": {"BTC": {"quantity": "1", "mark_price_usd": 5.0}}},
        {"working_orders": -1},
        {"pnl_usd": None},
        {"edges_bps": {"BTC": "NaN"}},
    ],
)
def test_unknown_is_frozen_when_a_router_reports_what_cannot_be(agent: AgentEnd, exposure: dict[str, Any]) -> None:
    """UNKNOWN IS FROZEN: zero, negative and non-numbers in a report are a fault of the inputs, and freeze."""
    connection = raw_router(agent, "r1")
    connection.sendall(encode("exposure", **{**Exposure().to_wire(), **exposure}))
    wait_until(lambda: agent.freezes, what="the freeze")
    assert agent.freezes[0].trigger == "bad_input"
    assert agent.exposures == []
    connection.close()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_unknown_is_frozen_when_a_router_sends_nan(agent: AgentEnd, number: str) -> None:
    """UNKNOWN IS FROZEN: NaN and infinities are not JSON, and not numbers here either."""
    connection = raw_router(agent, "r1")
    wire = json.dumps({"v": 1, "type": "exposure", **Exposure().to_wire()}).replace(
        '"pnl_usd": 0.0', f'"pnl_usd": {number}'
    )
    assert number in wire
    connection.sendall(wire.encode() + b"\n")
    wait_until(lambda: agent.freezes, what="the freeze")
    connection.close()


def test_a_book_with_nan_in_it_freezes_from_the_routers_own_half(
    agent: AgentEnd, make_link: Callable[..., RouterLink]
) -> None:
    """UNKNOWN IS FROZEN: the router's half cannot send NaN, so it says that it has it."""
    link = make_link(Trader())
    link.report(Exposure(holdings={"BTC": Holding(1.0, math.nan)}))
    wait_until(lambda: agent.freezes, what="the freeze")
    assert agent.freezes[0].trigger == "bad_input"


def test_a_routers_own_monitor_can_ask_for_a_freeze(agent: AgentEnd, make_link: Callable[..., RouterLink]) -> None:
    """ONE VOICE FREEZES: a trading process asks through its agent."""
    link = make_link(Trader())
    link.request_freeze("edge_collapse", "edge 1.20 < 1.50", scope="symbol:BTC", metadata={"edge_bps": 1.2})
    wait_until(lambda: agent.freezes, what="the request")
    assert agent.freezes[0] == FreezeRequest(
        "router:r1", "edge_collapse", "edge 1.20 < 1.50", "symbol:BTC", {"edge_bps": 1.2}
    )
    with pytest.raises(ValueError, match="not a part"):
        link.request_freeze("x", "y", scope="planet:mars")


def test_the_link_outlives_its_agent_and_reports_the_newest(
    agent: AgentEnd, make_link: Callable[..., RouterLink]
) -> None:
    """A restarted agent finds its routers again, with what they hold now."""
    link = make_link(Trader())
    wait_until(lambda: link.connected, what="the welcome")
    agent.server.close()
    wait_until(lambda: not link.connected, what="the loss of the agent")
    for quantity in range(1, 50):
        link.report(Exposure(holdings={"BTC": Holding(float(quantity), 10.0)}))
    agent.routers = RouterRegistry()
    agent.open()
    wait_until(lambda: exposure_of(agent.routers.states()).net_usd == 490.0, what="the newest report")


def test_what_was_reported_last_is_reported_to_an_agent_that_starts_anew(
    agent: AgentEnd, make_link: Callable[..., RouterLink]
) -> None:
    """NOTHING IS LOST: a router that reports only what changes is held as nothing by no agent that has just started."""
    link = make_link(Trader())
    link.report(Exposure(holdings={"BTC": Holding(3.0, 10.0)}, working_orders=2))
    wait_until(lambda: exposure_of(agent.routers.states()).net_usd == 30.0, what="the report")
    agent.server.close()
    wait_until(lambda: not link.connected, what="the loss of the agent")
    agent.routers = RouterRegistry()
    agent.open()
    wait_until(lambda: exposure_of(agent.routers.states()).net_usd == 30.0, what="the same report to the new agent")
    assert exposure_of(agent.routers.states()).working_orders == 2


def test_a_goodbye_is_not_a_loss(agent: AgentEnd, make_link: Callable[..., RouterLink]) -> None:
    """A router that ends on purpose is ended, not lost, and its last report stands."""
    link = make_link(Trader())
    wait_until(lambda: link.connected, what="the welcome")
    link.report(Exposure(holdings={"BTC": Holding(2.0, 10.0)}))
    link.close()
    wait_until(lambda: agent.presence("r1") is RouterPresence.ENDED, what="the goodbye")
    assert exposure_of(agent.routers.states()).net_usd == 20.0


def test_a_goodbye_does_not_overtake_the_last_report(
    agent: AgentEnd, make_link: Callable[..., RouterLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PROOF, NOT HOPE: what a router held when it ended is what it reported last, be it sent in that very moment."""
    link = make_link(Trader())
    wait_until(lambda: link.connected, what="the welcome")
    taken = threading.Event()
    write_report = link._write_report

    def write_report_late(report: Exposure) -> bool:
        taken.set()
        # A goodbye that does not wait for this report ends the connection meanwhile.
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not link.connected, within_s=0.5)
        return write_report(report)

    monkeypatch.setattr(link, "_write_report", write_report_late)
    link.report(Exposure(holdings={"BTC": Holding(2.0, 10.0)}))
    assert taken.wait(10.0)
    link.close()
    wait_until(lambda: agent.presence("r1") is RouterPresence.ENDED, what="the goodbye")
    assert exposure_of(agent.routers.states()).net_usd == 20.0


@pytest.mark.parametrize("line", [b"not json\n", b"[]\n", b'{"v":9,"type":"hello"}\n', b'{"v":1}\n', b"\xff\xfe\n"])
def test_junk_before_hello_is_refused_and_harms_nobody(agent: AgentEnd, line: bytes) -> None:
    """Bad input: a stranger on the socket is cut off, and routers go on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
        stranger.connect(str(agent.path))
        stranger.sendall(line)
        stranger.settimeout(5)
        assert stranger.recv(100) == b""
    raw_router(agent, "r1").close()
    assert agent.freezes == []


def test_lines_that_do_not_fit_or_are_not_finite_are_never_written() -> None:
    """A limit on everything: a line has a length, and NaN has no place in it."""
    with pytest.raises(BadLine, match="not finite"):
        encode("exposure", pnl_usd=math.nan)
    with pytest.raises(BadLine, match="longer"):
        encode("freeze", reason="x" * 300_000)


def test_a_socket_path_that_is_too_long_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    """Errors are sentences: what, where, what to do."""
    with pytest.raises(LinkUnavailable, match=r"agent\.link"):
        AgentEnd(tmp_path / ("x" * 120))


def test_no_thread_stays_behind(agent: AgentEnd, make_link: Callable[..., RouterLink]) -> None:
    """Closing a link ends its threads."""
    link = make_link(Trader(), router="r7")
    wait_until(lambda: link.connected, what="the welcome")
    link.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.endswith("-r7")]


def raw_router(agent: AgentEnd, router: str, *, instance: str = "i", reconciled: bool = False) -> socket.socket:
    """Connect as a router would, and wait for the welcome."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(agent.path))
    connection.sendall(encode("hello", router=router, instance=instance, pid=1, reconciled=reconciled))
    connection.settimeout(5)
    with connection.makefile("rb") as lines:
        kind, _ = decode(lines.readline())
    assert kind == "welcome"
    return connection
