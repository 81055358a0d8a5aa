"""The simulated venue over real sockets: it matches, it records, and it judges from its record alone."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from killswitch.clock import now_ns, wall_now
from killswitch.simulation.tape import Tick
from killswitch.simulation.venue import VenueServer
from killswitch.simulation.venue_client import VenueFault, VenueOperator
from tests.support.waiting import wait_until

CALM_PRICE, LOW_PRICE = 100.0, 90.0


class RawRouter:
    """A router of few words: sends what it is told, keeps what it hears."""

    def __init__(self, port: int, owner: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.heard: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.send({"type": "logon", "owner": owner})
        self.wait_for("welcome")

    def send(self, body: dict[str, Any]) -> None:
        self.socket.sendall(json.dumps({"v": 1, **body}).encode() + b"\n")

    def place(self, name: str, sequence: int, **changes: Any) -> None:
        order = {"symbol": "BTCUSDT", "side": "buy", "qty": 1.0, "price": 95.0}
        self.send({"type": "place", "client_order_id": name, "sequence": sequence, **order, **changes})

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [body for body in list(self.heard) if body["type"] == kind]

    def wait_for(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        wait_until(lambda: len(self.all(kind)) >= count, what=f"{count} x {kind}")
        return self.all(kind)

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(5)
        self.socket.close()

    def _read(self) -> None:
        # A peer that closes with bytes of ours unread resets the connection; to this end that is the end as well.
        with contextlib.suppress(ConnectionResetError), self.socket.makefile("rb") as lines:
            for line in lines:
                self.heard.append(json.loads(line))


def fall() -> list[Tick]:
    calm = [Tick({"BTCUSDT": CALM_PRICE}, "calm", "calm")] * 5
    return calm + [Tick({"BTCUSDT": LOW_PRICE}, "fall", "fall")] * 5


@pytest.fixture
def record_path(tmp_path: Path) -> Path:
    return tmp_path / "venue.jsonl"


@pytest.fixture
def server(record_path: Path) -> Iterator[VenueServer]:
    venue = VenueServer(fall(), seed=1, record_path=record_path, ticks_per_second=500)
    thread = threading.Thread(target=venue.serve)
    thread.start()
    yield venue
    venue.stop()
    thread.join(5)
    assert not thread.is_alive()


@pytest.fixture
def operator(server: VenueServer) -> Iterator[VenueOperator]:
    with closing(VenueOperator("127.0.0.1", server.port)) as connection:
        yield connection


@pytest.fixture
def join(server: VenueServer) -> Iterator[Callable[[str], RawRouter]]:
    routers = []

    def make(owner: str) -> RawRouter:
        routers.append(RawRouter(server.port, owner))
        return routers[-1]

    yield make
    for router in routers:
        router.close()


Join = Callable[[str], RawRouter]


@pytest.fixture
def router(join: Join, operator: VenueOperator) -> RawRouter:
    operator.start()
    connected = join("n1-r1")
    connected.wait_for("ticks")
    return connected


def test_nothing_trades_before_the_operator_starts_the_tape(join: Join) -> None:
    router = join("n1-r1")
    router.place("a", 1)
    assert "tape has not begun" in router.wait_for("rejected")[0]["reason"]


def test_an_order_rests_until_the_tape_crosses_its_price(router: RawRouter, operator: VenueOperator) -> None:
    router.place("a", 1)
    router.wait_for("accepted")
    assert router.all("filled") == []
    assert operator.summary()["open_orders"] == 1
    operator.go_on()
    filled = router.wait_for("filled")[0]
    assert (filled["client_order_id"], filled["price"], filled["qty"]) == ("a", 95.0, 1.0)
    assert operator.summary()["open_orders"] == 0


def test_an_order_through_the_market_is_filled_at_once(router: RawRouter) -> None:
    router.place("a", 1, price=CALM_PRICE + 5)
    router.wait_for("filled")
    router.place("b", 2, side="sell", price=CALM_PRICE - 5)
    router.wait_for("filled", 2)


def test_a_cancelled_order_is_never_filled(router: RawRouter, operator: VenueOperator) -> None:
    router.place("a", 1)
    router.send({"type": "cancel", "client_order_id": "a"})
    router.wait_for("cancelled")
    operator.go_on()
    wait_until(lambda: operator.summary()["tape"]["ended"], what="the end of the tape")
    assert router.all("filled") == []
    router.send({"type": "cancel", "client_order_id": "a"})
    assert "no such working order" in router.wait_for("cancel_rejected")[0]["reason"]


def test_cancel_all_leaves_nothing_and_other_owners_alone(
    router: RawRouter, join: Join, operator: VenueOperator
) -> None:
    other = join("n2-r1")
    other.place("x", 1)
    other.wait_for("accepted")
    for number in range(3):
        router.place(f"a{number}", number + 1)
    router.send({"type": "cancel_all", "request": 9})
    done = router.wait_for("cancel_all_done")[0]
    assert (done["cancelled"], done["request"]) == (3, 9)
    router.send({"type": "open_orders", "request": 10})
    assert router.wait_for("open_orders")[0]["orders"] == []
    owners = operator.summary()["owners"]
    assert (owners["n1-r1"]["open"], owners["n2-r1"]["open"]) == (0, 1)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"qty": math.nan}, "qty"),
        ({"qty": 0}, "qty"),
        ({"qty": -1.0}, "qty"),
        ({"qty": True}, "qty"),
        ({"qty": 10**400}, "qty"),
        ({"price": math.inf}, "price"),
        ({"price": 0.0}, "price"),
        ({"price": "95"}, "price"),
        ({"price": None}, "price"),
        ({"symbol": "DOGE"}, "DOGE"),
        ({"symbol": ["BTCUSDT"]}, "traded"),
        ({"side": "hold"}, "side"),
        ({"sequence": -1}, "sequence"),
        ({"sequence": 1.5}, "sequence"),
    ],
)
def test_an_order_with_a_bad_figure_is_rejected_by_name(
    router: RawRouter, operator: VenueOperator, changes: dict[str, Any], word: str
) -> None:
    router.place("bad", **{"sequence": 1, **changes})
    rejected = router.wait_for("rejected")[0]
    assert rejected["client_order_id"] == "bad"
    assert word in rejected["reason"]
    assert operator.summary()["open_orders"] == 0


def test_an_order_without_a_usable_name_is_rejected_and_the_venue_goes_on(router: RawRouter) -> None:
    router.place("a", 1, client_order_id=math.nan)
    assert router.wait_for("rejected")[0]["client_order_id"] is None
    router.place("b", 2)
    router.wait_for("accepted")


def test_a_line_that_means_nothing_is_answered_and_the_session_lives(router: RawRouter) -> None:
    router.socket.sendall(b"this is not json\n")
    router.wait_for("error")
    router.send({"type": "dance"})
    router.wait_for("error", 2)
    router.place("a", 1)
    router.wait_for("accepted")


def test_the_judge_sees_duplicates_and_sequence_numbers_that_go_back(
    router: RawRouter, operator: VenueOperator
) -> None:
    router.place("a", 5)
    router.place("a", 6)
    assert "used before" in router.wait_for("rejected")[0]["reason"]
    router.place("b", 4)
    router.wait_for("accepted", 2)
    summary = operator.summary()
    assert (summary["duplicates"], summary["sequence_faults"]) == (1, 1)
    assert summary["owners"]["n1-r1"]["last_sequence"] == 5


def test_the_judge_counts_arrivals_within_a_window(router: RawRouter, operator: VenueOperator) -> None:
    router.place("a", 1)
    router.wait_for("accepted")
    middle_ns, middle_wall = now_ns(), wall_now()
    router.place("b", 2)
    router.place("c", 3)
    router.wait_for("accepted", 3)
    assert operator.summary()["accepted"] == 3
    assert operator.summary(since_ns=middle_ns)["accepted"] == 2
    assert operator.summary(until_ns=middle_ns)["accepted"] == 1
    assert operator.summary(since_wall=middle_wall)["owners"]["n1-r1"]["accepted"] == 2
    assert operator.summary(until_wall=middle_wall)["accepted"] == 1
    assert operator.summary(since_ns=now_ns())["accepted"] == 0
    with pytest.raises(VenueFault, match="window"):
        operator.summary(since_wall="yesterday")


def test_orders_outlive_the_session_and_a_new_session_finds_them(
    router: RawRouter, join: Join, operator: VenueOperator
) -> None:
    router.place("a", 1)
    router.wait_for("accepted")
    again = join("n1-r1")
    again.send({"type": "open_orders", "request": 1})
    assert [order["client_order_id"] for order in again.wait_for("open_orders")[0]["orders"]] == ["a"]
    assert operator.summary()["owners"]["n1-r1"]["connected"]


def test_the_record_holds_every_message_with_its_arrival(
    router: RawRouter, operator: VenueOperator, record_path: Path
) -> None:
    router.place("a", 1)
    router.place("b", 2, qty=math.nan)
    router.send({"type": "cancel", "client_order_id": "a"})
    router.wait_for("cancelled")
    lines = [json.loads(line) for line in record_path.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["placed", "accepted", "placed", "rejected", "cancelled"]
    assert [line["n"] for line in lines] == [1, 2, 3, 4, 5]
    assert all(line["owner"] == "n1-r1" and line["at"].endswith("Z") for line in lines)
    assert [line["at_ns"] for line in lines] == sorted(line["at_ns"] for line in lines)
    assert operator.summary()["placed"] == 2


def test_a_router_that_does_not_read_holds_nobody_up(
    server: VenueServer, router: RawRouter, operator: VenueOperator
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        deaf.sendall(b'{"v":1,"type":"logon","owner":"deaf"}\n')
        wait_until(lambda: "deaf" in operator.summary()["owners"], what="the deaf router")
        for number in range(200):
            router.place(f"a{number}", number + 1)
        router.wait_for("accepted", 200)


def test_the_venue_runs_as_a_process_of_its_own(record_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "killswitch.simulation.venue", "--record", str(record_path), "--seed", "3"],
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        with process.stdout:
            address = json.loads(process.stdout.readline())
        with closing(VenueOperator(address["host"], address["port"])) as operator:
            operator.start()
            wait_until(lambda: operator.summary()["tape"]["played"] > 0, what="the first tick")
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait(5)


def test_a_tape_that_cannot_be_played_ends_the_process_with_a_sentence(tmp_path: Path, record_path: Path) -> None:
    bars = tmp_path / "bars.csv"
    bars.write_text("timestamp,open\n")
    command = [sys.executable, "-m", "killswitch.simulation.venue", "--record", str(record_path), "--bars", str(bars)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert "bars.csv:1: there is no column" in ended.stderr
