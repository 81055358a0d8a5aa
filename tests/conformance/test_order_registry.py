"""The rig's order registry, in memory and in a real Redis: the same intent never makes two orders, whoever asks."""

from __future__ import annotations

import json
import multiprocessing
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from decimal import Decimal
from typing import Any

import pytest
import redis
import structlog
from click.testing import CliRunner

from killswitch.cli import cli
from killswitch.routing.order_registry import (
    MemoryOrderRegistry,
    OrderError,
    OrderRegistry,
    RegisteredOrder,
    RegistryUnavailable,
)
from killswitch.routing.order_state import OrderState
from killswitch.routing.redis_order_registry import PREFIX, RedisOrderRegistry, RedisRegistries
from killswitch.simulation import rig as scenarios
from tests.conformance.conftest import DOCKER
from tests.conformance.rigs.memory import MemoryRig
from tests.conformance.rigs.redis import RedisContainerRig, image_of_redis

S = OrderState
LIVE = frozenset({S.ACCEPTED, S.WORKING, S.PARTIAL_FILL})
THREADS = 8

REDIS = pytest.param("redis", marks=DOCKER)
only_redis = pytest.mark.parametrize("rig", [REDIS], indirect=True)


@pytest.fixture(scope="module", params=["memory", REDIS])
def rig(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Where orders are kept, in place of the stores of the shared suite."""
    made = MemoryRig() if request.param == "memory" else RedisContainerRig(image_of_redis())
    yield made
    made.close()


Open = Callable[[], OrderRegistry]


@pytest.fixture
def reopen(rig: Any, nothing_left_behind: None) -> Iterator[Open]:
    """Opens the same registry again, as another process would; in memory there is one."""
    if isinstance(rig, MemoryRig):
        one = MemoryOrderRegistry()
        yield lambda: one
        return
    prefix = f"{PREFIX}:{uuid.uuid4().hex}"
    with ExitStack() as stack:

        def again() -> OrderRegistry:
            opened = stack.enter_context(RedisRegistries(f"redis://{rig.server}", keep=True))
            return RedisOrderRegistry(opened.client, opened.address, prefix)

        yield again


@pytest.fixture
def registry(reopen: Open) -> OrderRegistry:
    """An empty one."""
    return reopen()


@pytest.fixture
def raw(rig: RedisContainerRig, registry: OrderRegistry) -> Iterator[redis.Redis]:
    """The Redis itself."""
    del registry
    host, port = rig.server.split(":")
    with redis.Redis(host=host, port=int(port), decode_responses=True, socket_timeout=5) as client:
        yield client


def submit(registry: OrderRegistry, intent: str, **changes: Any) -> tuple[RegisteredOrder, bool]:
    given: dict[str, Any] = {
        "symbol": "AAA",
        "bucket": "LT",
        "side": "buy",
        "quantity": Decimal("10.0"),
        "price": Decimal("5.25"),
        "urgency": "resting",
    }
    return registry.submit(intent, **{**given, **changes})


def stands(registry: OrderRegistry, order: RegisteredOrder) -> RegisteredOrder:
    """The order as it stands now."""
    found = registry.by_id(order.order_id)
    assert found is not None
    return found


def outcomes(work: Callable[[int], Any]) -> list[Any]:
    """What as many threads get that do the same at once; an order that refuses is an answer."""

    def guarded(number: int) -> Any:
        try:
            return work(number)
        except OrderError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(guarded, range(THREADS)))


# -- one intent, one order -------------------------------------------------------------------------------------------


def test_the_same_intent_never_makes_two_orders(registry: OrderRegistry) -> None:
    """Not with other contents, and not after it is over."""
    first, is_new = submit(registry, "i")
    again, is_new_again = submit(registry, "i", symbol="BBB", quantity=Decimal(1))
    assert (is_new, is_new_again, len(registry)) == (True, False, 1)
    assert again == first == registry.by_intent("i")
    registry.cancel(first.order_id)
    assert submit(registry, "i") == (stands(registry, first), False)


def test_threads_that_send_one_intent_make_one_order(reopen: Open) -> None:
    """Exactly one of them is told that it made the order: whoever else sent it to the venue would send it twice."""
    each = [reopen() for _ in range(THREADS)]
    for number in range(20):
        made = outcomes(lambda which, number=number: submit(each[which], f"i{number}"))  # type: ignore[misc]
        assert sum(is_new for _, is_new in made) == 1
        assert len({order.order_id for order, _ in made}) == 1
    assert len(each[0]) == 20
    assert [order.order_id for order in each[0].find()] == [f"O{number:05d}" for number in range(1, 21)]


def submit_elsewhere(server: str, prefix: str, intents: int) -> list[tuple[str, bool]]:
    """What one process is told that sends every intent."""
    with RedisRegistries(f"redis://{server}", keep=True) as opened:
        registry = RedisOrderRegistry(opened.client, opened.address, prefix)
        told = [submit(registry, f"i{number}") for number in range(intents)]
    return [(order.order_id, is_new) for order, is_new in told]


@only_redis
def test_processes_that_send_one_intent_make_one_order(rig: Any, registry: RedisOrderRegistry) -> None:
    """The registry is shared by processes; who loses learns the order that there is."""
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(submit_elsewhere, rig.server, registry.prefix, 50) for _ in range(4)]
        told = [job.result(timeout=60) for job in jobs]
    for number in range(50):
        of_one_intent = [one[number] for one in told]
        assert sum(is_new for _, is_new in of_one_intent) == 1
        assert len({order_id for order_id, _ in of_one_intent}) == 1
    assert len(registry) == 50


# -- a life ----------------------------------------------------------------------------------------------------------

WAYS: dict[S, Callable[[OrderRegistry, str], object]] = {
    S.ACCEPTED: lambda registry, order_id: None,
    S.WORKING: lambda registry, order_id: registry.acknowledge(order_id),
    S.PARTIAL_FILL: lambda registry, order_id: (registry.acknowledge(order_id), registry.fill(order_id)),
    S.FILLED: lambda registry, order_id: (registry.acknowledge(order_id), registry.fill(order_id)),
    S.CANCELED: lambda registry, order_id: registry.cancel(order_id),
    S.REJECTED: lambda registry, order_id: None,
}
"""How an order comes into a state."""

STEPS: dict[str, tuple[Callable[[OrderRegistry, str], object], frozenset[S]]] = {
    "acknowledge": (lambda registry, order_id: registry.acknowledge(order_id), frozenset({S.ACCEPTED})),
    "fill": (lambda registry, order_id: registry.fill(order_id), frozenset({S.WORKING})),
    "replace": (
        lambda registry, order_id: registry.replace(order_id, "new", quantity=Decimal(1), price=Decimal(1)),
        LIVE,
    ),
}
"""A step, and the states that it may be taken from."""


@pytest.mark.parametrize("state", list(S))
@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_a_life_does_not_have_is_refused_and_changes_nothing(
    registry: OrderRegistry, state: OrderState, step: str
) -> None:
    """ACCEPTED -> WORKING -> PARTIAL_FILL -> FILLED / CANCELED / REJECTED, and never back."""
    urgency = "cross_spread" if state is S.FILLED else "resting"
    order, _ = submit(registry, "i", urgency=urgency, rejected=state is S.REJECTED)
    WAYS[state](registry, order.order_id)
    before = stands(registry, order)
    assert before.state is state
    take, allowed = STEPS[step]
    if state in allowed:
        take(registry, order.order_id)
        assert stands(registry, order).state is not state
        return
    with pytest.raises(OrderError, match=f"O00001 is {state.word}, so it cannot"):
        take(registry, order.order_id)
    assert registry.find() == [before]


@pytest.mark.parametrize("state", list(S))
def test_a_cancel_always_passes(registry: OrderRegistry, state: OrderState) -> None:
    """A CANCEL ALWAYS PASSES: of what is over it says so, and only of what never was is it an error."""
    urgency = "cross_spread" if state is S.FILLED else "resting"
    order, _ = submit(registry, "i", urgency=urgency, rejected=state is S.REJECTED)
    WAYS[state](registry, order.order_id)
    assert registry.cancel(order.order_id) is (state in LIVE)
    assert stands(registry, order).remaining == 0
    assert stands(registry, order).state is (S.CANCELED if state in LIVE else state)
    with pytest.raises(OrderError, match="there is no order O99999"):
        registry.cancel("O99999")


@pytest.mark.parametrize(
    ("urgency", "filled", "state"),
    [("cross_spread", "10", S.FILLED), ("near_last", "9", S.PARTIAL_FILL), ("resting", "5", S.PARTIAL_FILL)],
)
def test_fills_are_the_same_in_every_run(registry: OrderRegistry, urgency: str, filled: str, state: OrderState) -> None:
    order, _ = submit(registry, "i", urgency=urgency)
    assert registry.acknowledge(order.order_id) == stands(registry, order)
    assert registry.fill(order.order_id) == Decimal(filled)
    now = stands(registry, order)
    assert (now.state, now.filled, now.remaining) == (state, Decimal(filled), (10 - Decimal(filled)))


def test_of_many_that_take_the_same_step_at_once_one_takes_it(reopen: Open) -> None:
    """A state is written over the one that it was taken from, or not at all."""
    each = [reopen() for _ in range(THREADS)]
    for number in range(10):
        order, _ = submit(each[0], f"i{number}")
        acknowledged = outcomes(lambda which, at=order.order_id: each[which].acknowledge(at))  # type: ignore[misc]
        assert sum(isinstance(one, RegisteredOrder) for one in acknowledged) == 1
        # Half of them fill and half cancel: whatever comes first, the order filled once at most and is over.
        mixed = outcomes(
            lambda which, at=order.order_id: each[which].cancel(at) if which % 2 else each[which].fill(at)  # type: ignore[misc]
        )
        fills = [one for one in mixed[::2] if not isinstance(one, OrderError)]
        assert len(fills) <= 1
        assert mixed[1::2].count(True) == 1
        assert stands(each[0], order).state is S.CANCELED
        assert stands(each[0], order).filled == (fills[0] if fills else 0)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_never_taken_from_a_state_that_is_past(
    registry: OrderRegistry, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Somebody cancels between the look at an order and the step: what was cancelled stays cancelled."""
    order, _ = submit(registry, "i")
    if step == "fill":
        order = registry.acknowledge(order.order_id)
    registry.cancel(order.order_id)
    now, looks = stands(registry, order), [order]
    look = registry.by_id
    monkeypatch.setattr(registry, "by_id", lambda order_id: looks.pop() if looks else look(order_id))
    with pytest.raises(OrderError, match="is CANCELED, so it cannot"):
        STEPS[step][0](registry, order.order_id)
    assert (registry.find(), looks) == ([now], [])


# -- replace ---------------------------------------------------------------------------------------------------------


def test_a_replace_is_cancel_ack_and_a_new_order(registry: OrderRegistry) -> None:
    order, _ = submit(registry, "i")
    registry.acknowledge(order.order_id)
    new = registry.replace(order.order_id, "j", quantity=Decimal(4), price=Decimal(6))
    assert (stands(registry, order).state, new.state, new.quantity) == (S.CANCELED, S.WORKING, 4)
    assert registry.replace(order.order_id, "j", quantity=Decimal(4), price=Decimal(6)) == new
    with pytest.raises(OrderError, match="O00001 is CANCELED, so it cannot be replaced"):
        registry.replace(order.order_id, "k", quantity=Decimal(4), price=Decimal(6))
    assert registry.find(symbol="AAA", live_only=True) == [new]
    assert len(registry.find()) == 2


@pytest.mark.parametrize("intents", [1, THREADS], ids=["one intent", "an intent each"])
def test_an_order_that_many_replace_at_once_is_replaced_once(reopen: Open, intents: int) -> None:
    """Nothing stands between the cancel and the new order, so no two take one order's place."""
    each = [reopen() for _ in range(THREADS)]
    for number in range(10):
        order, _ = submit(each[0], f"i{number}")
        told = outcomes(
            lambda which, at=order.order_id, number=number: each[which].replace(  # type: ignore[misc]
                at, f"new{number}-{which % intents}", quantity=Decimal(1), price=Decimal(1)
            )
        )
        new = {one.order_id for one in told if isinstance(one, RegisteredOrder)}
        assert len(new) == 1
        assert len([one for one in told if isinstance(one, OrderError)]) == (0 if intents == 1 else THREADS - 1)
        assert [one.order_id for one in each[0].find(live_only=True)] == list(new)
        each[0].cancel(new.pop())


# -- indexes, limits, restarts ---------------------------------------------------------------------------------------


def test_orders_are_found_by_id_intent_symbol_and_side(registry: OrderRegistry) -> None:
    """Oldest first, each with the figures that it was sent with, to the digit."""
    made = {
        intent: submit(registry, intent, symbol=symbol, side=side)[0]
        for intent, symbol, side in (("1", "A:B", "sell"), ("2", "A", "buy"), ("3", "A", "sell"), ("4", "ü b", "buy"))
    }
    for intent, order in made.items():
        assert registry.by_intent(intent) == registry.by_id(order.order_id) == order
        assert str(order.quantity) == str(stands(registry, order).quantity) == "10.0"
    assert registry.by_id("O99999") is registry.by_intent("?") is None
    assert registry.find() == list(made.values())
    assert registry.find(symbol="A") == [made["2"], made["3"]]
    assert registry.find(side="sell") == [made["1"], made["3"]]
    assert registry.find(symbol="A", side="sell") == [made["3"]]
    assert registry.find(symbol="ü b", side="buy") == [made["4"]]
    assert registry.find(symbol="B") == registry.find(side="none") == registry.find(symbol="A:B", side="buy") == []
    registry.cancel(made["2"].order_id)
    assert registry.find(symbol="A", live_only=True) == [made["3"]]


def test_the_registry_has_a_limit_and_a_replace_beyond_it_cancels_nothing(
    registry: OrderRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("killswitch.routing.order_registry.MAX_ORDERS", 1)
    order, _ = submit(registry, "i")
    with pytest.raises(OrderError, match="holds 1 orders already"):
        submit(registry, "j")
    with pytest.raises(OrderError, match="holds 1 orders already"):
        registry.replace(order.order_id, "j", quantity=Decimal(1), price=Decimal(1))
    assert registry.find() == [order]


@only_redis
def test_a_restart_finds_everything(rig: RedisContainerRig, registry: OrderRegistry, reopen: Open) -> None:
    """NOTHING IS LOST when the process ends, or Redis itself: each intent still makes no second order."""
    orders = [submit(registry, f"i{number}", side=("buy", "sell")[number % 2])[0] for number in range(6)]
    registry.acknowledge(orders[0].order_id)
    registry.acknowledge(orders[1].order_id)
    registry.fill(orders[1].order_id)
    registry.cancel(orders[2].order_id)
    before = registry.find()
    rig.kill()
    rig.revive()
    rig.wait_until_serving()
    again = reopen()
    assert again.find() == before
    assert [submit(again, f"i{number}")[1] for number in range(6)] == [False] * 6
    assert again.find(side="sell") == before[1::2]
    assert again.fill(orders[0].order_id) == 5


# -- what only Redis has ---------------------------------------------------------------------------------------------


@only_redis
def test_all_keys_are_below_the_prefix_and_are_removed_with_the_registry(
    registry: RedisOrderRegistry, raw: redis.Redis
) -> None:
    """A Redis is shared with others: nothing of theirs is touched, and nothing of ours stays."""
    before = set(raw.keys("*"))
    other = RedisOrderRegistry(raw, "redis://other", f"{registry.prefix}-other")
    kept, _ = submit(other, "i")
    submit(registry, "i", symbol="A")
    submit(registry, "j", symbol="B", side="sell")
    made = set(raw.keys("*")) - before
    assert {key.partition("}")[0] for key in made} == {f"{{{registry.prefix}", f"{{{registry.prefix}-other"}
    registry.remove()
    assert (len(registry), registry.find(), registry.by_intent("i")) == (0, [], None)
    assert other.find() == [kept]
    other.remove()
    assert set(raw.keys("*")) == before


@only_redis
@pytest.mark.parametrize("part", ["orders", "states"])
def test_an_entry_that_cannot_be_read_is_told(registry: RedisOrderRegistry, raw: redis.Redis, part: str) -> None:
    """UNKNOWN IS FROZEN: nothing is sent by what nobody understands, and it is not written over."""
    order, _ = submit(registry, "i")
    raw.hset(f"{{{registry.prefix}}}:{part}", order.order_id, "?")
    for ask in (
        lambda: registry.by_intent("i"),
        lambda: registry.cancel(order.order_id),
        lambda: submit(registry, "i"),
    ):
        with pytest.raises(OrderError, match=r"order O00001 below .* cannot be read"):
            ask()
    assert raw.hget(f"{{{registry.prefix}}}:{part}", order.order_id) == "?"


@pytest.fixture
def logs() -> Iterator[None]:
    """The command sets up logging for its whole process; what was there before comes back."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@only_redis
@pytest.mark.usefixtures("logs")
def test_the_rig_says_the_same_to_the_byte_and_leaves_nothing(rig: RedisContainerRig, raw: redis.Redis) -> None:
    """`killswitch scenario rig --registry`: where orders are kept changes no decision."""
    before = set(raw.keys("*"))
    words = ["-o", "json", "scenario", "rig", "--registry", f"redis://{rig.server}"]
    done = [CliRunner().invoke(cli, words) for _ in range(2)]
    assert [one.exit_code for one in done] == [0, 0]
    assert done[0].stdout == done[1].stdout == scenarios.report(scenarios.play_all())
    assert set(raw.keys("*")) == before


@only_redis
@pytest.mark.usefixtures("logs")
def test_the_rig_keeps_its_orders_when_asked_to(rig: RedisContainerRig, raw: redis.Redis) -> None:
    """A person looks at them with redis-cli, under the prefix that the command says."""
    words = ["scenario", "rig", "B", "--registry", f"redis://{rig.server}/1", "--keep-orders"]
    done = CliRunner().invoke(cli, words)
    assert (done.exit_code, done.stdout[:5]) == (0, "B  OK")
    prefix = done.stderr.partition("below {")[2].partition("}")[0]
    assert prefix
    assert prefix not in str(raw.keys("*"))
    raw.select(1)
    body = json.loads(str(raw.hget(f"{{{prefix}}}:orders", "O00001")))
    assert (body["intent_id"], body["symbol"]) == ("B-0", "AAA")
    raw.flushdb()


@only_redis
@pytest.mark.usefixtures("logs")
def test_a_redis_that_hangs_ends_the_rig_with_a_sentence(rig: RedisContainerRig, registry: OrderRegistry) -> None:
    """A limit on every call; a rehearsal that could not be kept has neither passed nor failed: exit 4."""
    rig.pause()
    try:
        with pytest.raises(RegistryUnavailable, match=r"asked for an order of intent i and did not answer \(Timeout"):
            submit(registry, "i")
        done = CliRunner().invoke(cli, ["scenario", "rig", "--registry", f"redis://{rig.server}"])
    finally:
        rig.resume()
    assert (done.exit_code, done.stdout) == (4, "")
    assert f"the order registry at redis://{rig.server}" in done.stderr
