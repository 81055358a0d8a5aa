"""A registry of orders in Redis: what several processes share, and what a restart finds again.

Below a prefix of its own, which is a hash tag so that a Redis Cluster keeps it in one place:

=================== ======= ========================================================
key                 type    holds
=================== ======= ========================================================
``{P}:intents``     hash    intent id -> order id
``{P}:orders``      hash    order id -> what never changes of it, as JSON
``{P}:states``      hash    order id -> state and filled quantity, ``WORKING 0``
``{P}:symbol:S``    zset    the order ids of a symbol, by their number
``{P}:side:S``      zset    the same for a side
``{P}:indexes``     set     the names of all those zsets
=================== ======= ========================================================

Making an order is one script, so an intent makes one order whoever asks, and a step is written over the state that it
was taken from or not at all. Nothing is sent twice: an order whose answer was lost is asked for by its intent.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from killswitch.routing import order_registry
from killswitch.routing.order_registry import (
    OrderError,
    OrderRegistry,
    RegisteredOrder,
    RegistryUnavailable,
    cancelled,
    registry_full,
)
from killswitch.routing.order_state import OrderState
from killswitch.stores.urls import StoreUrl, parse_store_url

T = TypeVar("T")

TIMEOUT_S: Final = 2.0
"""How long a connection may take, and each answer."""

PREFIX: Final = "killswitch:rig"
"""What the names of all keys begin with, after the brace of the hash tag."""

_MAKE: Final = """
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known then
  return {'KNOWN', known, redis.call('HGET', KEYS[2], known), redis.call('HGET', KEYS[3], known)}
end
if ARGV[4] ~= '' and redis.call('HGET', KEYS[3], ARGV[4]) ~= ARGV[5] then
  return {'MOVED'}
end
local number = redis.call('HLEN', KEYS[2]) + 1
if number > tonumber(ARGV[7]) then
  return {'FULL'}
end
local id = string.format('O%05d', number)
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[3], ARGV[4], ARGV[6])
end
redis.call('HSET', KEYS[1], ARGV[1], id)
redis.call('HSET', KEYS[2], id, ARGV[2])
redis.call('HSET', KEYS[3], id, ARGV[3])
redis.call('ZADD', KEYS[4], number, id)
redis.call('ZADD', KEYS[5], number, id)
redis.call('SADD', KEYS[6], KEYS[4], KEYS[5])
return {'NEW', id}
"""
# KEYS: intents, orders, states, the symbol's ids, the side's ids, indexes.
# ARGV: intent, body, state; id, state and next state of what is replaced, or ''; the most orders.

_CHANGE: Final = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""
# KEYS: states. ARGV: order id, state, next state.

_REMOVE: Final = """
local names = redis.call('SMEMBERS', KEYS[1])
for _, name in ipairs(names) do
  redis.call('DEL', name)
end
return redis.call('DEL', unpack(KEYS))
"""
# KEYS: indexes, intents, orders, states.

_FIXED: Final = ("intent_id", "symbol", "bucket", "side", "quantity", "price", "urgency")


class RedisOrderRegistry(OrderRegistry):
    """A registry that several processes share.

    Every method raises :class:`RegistryUnavailable` when Redis does not answer or refuses, and :class:`OrderError` for
    an entry that cannot be read.

    Args:
        client: of one server, decoding answers to text, that sends nothing twice.
        address: where it is, for people.
        prefix: what keeps these orders apart from others.
    """

    def __init__(self, client: redis.Redis, address: str, prefix: str) -> None:
        self.address = address
        self.prefix = prefix
        self._client = client
        self._intents, self._orders, self._states, self._indexes = map(
            self._key, ("intents", "orders", "states", "indexes")
        )
        self._make_script = client.register_script(_MAKE)
        self._change_script = client.register_script(_CHANGE)
        self._remove_script = client.register_script(_REMOVE)

    def __len__(self) -> int:
        return int(self._asked("how many orders there are", lambda: self._client.hlen(self._orders)))

    def by_id(self, order_id: str) -> RegisteredOrder | None:
        def ask() -> list[Any]:
            with self._client.pipeline(transaction=True) as both:
                both.hget(self._orders, order_id)
                both.hget(self._states, order_id)
                return list(both.execute())

        body, state = self._asked(f"for order {order_id}", ask)
        return None if body is None else self._order(order_id, body, state)

    def by_intent(self, intent_id: str) -> RegisteredOrder | None:
        order_id = self._asked(f"for intent {intent_id}", lambda: self._client.hget(self._intents, intent_id))
        return None if order_id is None else self.by_id(str(order_id))

    def find(
        self, *, symbol: str | None = None, side: str | None = None, live_only: bool = False
    ) -> list[RegisteredOrder]:
        named = [self._key("symbol", symbol)] if symbol is not None else []
        named += [self._key("side", side)] if side is not None else []

        def ask() -> list[tuple[str, Any, Any]]:
            ids: list[Any] = self._client.zinter(named) if named else sorted(self._client.hkeys(self._orders))
            if not ids:
                return []
            with self._client.pipeline(transaction=True) as both:
                both.hmget(self._orders, ids)
                both.hmget(self._states, ids)
                bodies, states = both.execute()
            return list(zip(ids, bodies, states, strict=True))

        found = [self._order(*entry) for entry in self._asked("for orders", ask) if entry[1] is not None]
        return [order for order in found if order.is_live or not live_only]

    def remove(self) -> None:
        """Take away every key of this registry, and none of another."""
        keys = [self._indexes, self._intents, self._orders, self._states]
        self._asked("to remove its orders", lambda: self._remove_script(keys=keys))

    def _make(self, draft: RegisteredOrder, replaced: RegisteredOrder | None) -> tuple[RegisteredOrder, bool] | None:
        old = ("", "", "") if replaced is None else (replaced.order_id, _state(replaced), _state(cancelled(replaced)))
        body = json.dumps({name: str(getattr(draft, name)) for name in _FIXED}, separators=(",", ":"))
        keys = [self._intents, self._orders, self._states, self._key("symbol", draft.symbol),
                self._key("side", draft.side), self._indexes]  # fmt: skip
        arguments: list[str | int] = [draft.intent_id, body, _state(draft), *old, order_registry.MAX_ORDERS]
        word, *told = self._asked(
            f"for an order of intent {draft.intent_id}", lambda: self._make_script(keys=keys, args=arguments)
        )
        if word == "FULL":
            raise registry_full()
        if word == "MOVED":
            return None
        return (replace(draft, order_id=told[0]), True) if word == "NEW" else (self._order(*told), False)

    def _change(self, before: RegisteredOrder, after: RegisteredOrder) -> bool:
        arguments = [before.order_id, _state(before), _state(after)]
        changed = self._asked(
            f"to make {before.order_id} {after.state.word}",
            lambda: self._change_script(keys=[self._states], args=arguments),
        )
        return bool(changed)

    def _key(self, *parts: str) -> str:
        return ":".join((f"{{{self.prefix}}}", *parts))

    def _order(self, order_id: str, body: str, state: str | None) -> RegisteredOrder:
        try:
            fixed: dict[str, str] = json.loads(body)
            word, _, quantity = (state or "").partition(" ")
            return RegisteredOrder(
                order_id=order_id,
                intent_id=fixed["intent_id"],
                symbol=fixed["symbol"],
                bucket=fixed["bucket"],
                side=fixed["side"],
                quantity=Decimal(fixed["quantity"]),
                price=Decimal(fixed["price"]),
                urgency=fixed["urgency"],
                state=OrderState.of_word(word),
                filled=Decimal(quantity),
            )
        except (ValueError, KeyError, TypeError, InvalidOperation) as error:
            raise OrderError(
                f"order {order_id} below {self._key()} in {self.address} cannot be read ({error!r}): somebody else "
                "wrote there; look at it before anything is sent"
            ) from error

    def _asked(self, what: str, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except redis.RedisError as error:
            raise RegistryUnavailable(
                f"the order registry at {self.address} was asked {what} and did not answer ({error}); it may have "
                "happened: start it, or mend its address or the network, then ask for the intent again"
            ) from error


class RedisRegistries:
    """Makes empty registries in one Redis, each with a prefix that nobody else has, and removes them in the end.

    Args:
        url: ``redis://`` or ``rediss://`` as a store's; nothing is sent before the first order.
        keep: leave the keys where they are at the end.

    Attributes:
        address: where it is, without secrets.
        client: of that Redis; sends nothing twice.
        prefix: what all prefixes begin with; a colon and a number follow.

    Raises:
        ValueError: the URL names no single Redis, or asks for what a registry cannot do.
    """

    def __init__(self, url: str, *, keep: bool = False) -> None:
        parsed = parse_store_url(url)
        self.address = parsed.address
        self.prefix = f"{PREFIX}:{uuid.uuid4().hex[:12]}"
        self.client = _client(parsed)
        self._keep = keep
        self._made: list[RedisOrderRegistry] = []

    def make(self) -> RedisOrderRegistry:
        """A registry without an order."""
        made = RedisOrderRegistry(self.client, self.address, f"{self.prefix}:{len(self._made) + 1}")
        self._made.append(made)
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for registry in () if self._keep else self._made:
                registry.remove()
        except RegistryUnavailable:
            # What went wrong first is what is told.
            if error is None:
                raise
        finally:
            self.client.close()


def _client(url: StoreUrl) -> redis.Redis:
    """A client of the server that a URL names; connects with the first call."""
    if url.scheme not in ("redis", "rediss"):
        raise ValueError(f"an order registry is kept in one Redis: write redis://HOST:PORT/DB, not {url.scheme}://")
    if url.wait_replicas is not None or (url.tls is not None and url.tls.server_name is not None):
        raise ValueError("an order registry takes neither wait_replicas nor server_name; leave them out of its URL")
    database = url.path.removeprefix("/") or "0"
    if not (database.isascii() and database.isdecimal()):
        raise ValueError(f"{url.path!r} names no database of Redis; write its number, redis://HOST:PORT/DB")
    host, _, port = url.servers[0].rpartition(":")
    tls: dict[str, Any] = {}
    if url.tls is not None:
        files = {"ssl_ca_certs": url.tls.ca_file, "ssl_certfile": url.tls.cert_file, "ssl_keyfile": url.tls.key_file}
        tls = {"ssl": True, **{name: str(path) for name, path in files.items() if path is not None}}
    return redis.Redis(
        host=host.strip("[]"),
        port=int(port),
        db=int(database),
        username=url.login.username or None if url.login else None,
        password=url.login.password if url.login else None,
        decode_responses=True,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        # A second attempt would find the order of the first, and nobody would send it.
        retry=Retry(NoBackoff(), 0),
        **tls,
    )


def _state(order: RegisteredOrder) -> str:
    return f"{order.state.word} {order.filled}"
