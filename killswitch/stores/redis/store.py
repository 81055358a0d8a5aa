"""The port on Redis 6.2 or newer: one server, or those that Sentinel looks after.

Redis has no versions, no leases that say how they ended, and no watch that can be trusted, so all three are made of
Lua scripts and indexes (``scripts``). What Redis does not promise cannot be made: a failover, or a crash with
``appendfsync everysec``, can forget a write that was acknowledged. ``docs/decisions/0014-redis.md`` says what remains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from killswitch import clock
from killswitch.stores.front import LeaseFront, StoreFront, conflict, key_text
from killswitch.stores.port import Conflict, Entry, Guarantees, OnChange, OnGap
from killswitch.stores.redis.link import Command, LinkSettings, Refusal
from killswitch.stores.redis.primary import NamedPrimary, Primary, SentinelPrimary
from killswitch.stores.redis.scripts import REFUSED, Calls
from killswitch.stores.redis.sockets import Resolver
from killswitch.stores.redis.transport import RedisTransport
from killswitch.stores.redis.watch import LOOK_EVERY_MS, RedisWatch, RedisWatchSettings
from killswitch.stores.tls import client_context
from killswitch.stores.urls import StoreUrl

# A read sees at once that a lease has run out. A watch hears of it when one of them looks, every half second; the rest
# is for a machine that is busy.
LEASE_SLACK_MS = 1_500
# Redis refuses times beyond its calendar, and would do so in the middle of a script.
TTL_MAX_MS = 10 * 365 * 86_400_000
SENTINEL_REPLICAS = 1
# What of the configuration decides whether it may forget.
CONFIGURED = ("maxmemory-policy", "appendonly", "appendfsync", "min-replicas-to-write")

_FORGETS = (
    "a crash of the machine forgets what appendfsync had not brought to the disk; agents then say again what they know"
)
GUARANTEES = Guarantees(
    linearizable_reads=True,
    survives_failover=False,
    atomic_multi_key=True,
    lease_slack_ms=LEASE_SLACK_MS,
    note=f"One Redis, and no other to take over: {_FORGETS}.",
)
SENTINEL_GUARANTEES = Guarantees(
    # A failover can take back what was written, and with it what was read.
    linearizable_reads=False,
    survives_failover=False,
    atomic_multi_key=True,
    lease_slack_ms=LEASE_SLACK_MS,
    note=(
        "Replication is asynchronous: a failover can forget an acknowledged freeze until an agent says it again, and "
        f"{_FORGETS}. With wait_replicas={{wait_replicas}} {{fence}}"
    ),
)
_FENCED = (
    "an old primary that is cut off answers nobody once too few replicas follow it: the primary and wait_replicas "
    "should be more than half of all servers."
)
_UNFENCED = "an old primary that is cut off goes on answering those who still reach it; set wait_replicas."


class RedisLease(LeaseFront):
    """A lease of :class:`RedisStore`."""

    def __init__(self, transport: RedisTransport, calls: Calls, key: str, version: int, ttl_ms: int) -> None:
        super().__init__(key, version, f"redis {transport.primary.address}")
        self._transport = transport
        self._calls = calls
        self._ttl_ms = ttl_ms

    def _keep_alive(self, what: str) -> str:
        answer = self._transport.ask(self._calls.keep_alive(self._key, self._version, self._ttl_ms), what)
        return "is gone" if answer[0] == REFUSED else ""

    def _release(self, what: str) -> None:
        self._transport.ask(self._calls.release(self._key, self._version), what)


class RedisStore(StoreFront):
    """The port on Redis. Opening one sends nothing; the first call connects.

    Args:
        url: the server, or the Sentinels and the name of the primary; number of the database; logins; TLS; how many
            replicas confirm each request.
        request_timeout_ms: time that one call may take, finding the primary included.
        backoff_cap_ms: longest pause between two attempts of a watch to reconnect.
        look_every_ms: how often a watch looks without having been told to.
        now_ns: clock of the time-outs.

    Raises:
        ValueError: the path or a TLS file is not understood.
    """

    def __init__(
        self,
        url: StoreUrl,
        *,
        request_timeout_ms: int = 400,
        backoff_cap_ms: int = 1_000,
        look_every_ms: int = LOOK_EVERY_MS,
        now_ns: clock.NowNs = clock.now_ns,
    ) -> None:
        with_sentinel = url.scheme.endswith("+sentinel")
        wait_replicas = url.wait_replicas if url.wait_replicas is not None else SENTINEL_REPLICAS * with_sentinel
        super().__init__(url.address, _guarantees(with_sentinel=with_sentinel, wait_replicas=wait_replicas))
        name, database = _path(url, with_sentinel=with_sentinel)
        primary = _primary(url, name, database, confirmed=wait_replicas > 0, now_ns=now_ns)
        self._calls = Calls(database, counted=wait_replicas > 0)
        self._transport = RedisTransport(
            primary, request_timeout_ms=request_timeout_ms, wait_replicas=wait_replicas, now_ns=now_ns
        )
        self._watch_settings = RedisWatchSettings(
            servers=(primary.address,),
            request_timeout_ms=request_timeout_ms,
            backoff_cap_ms=backoff_cap_ms,
            alive_every_ms=look_every_ms,
            now_ns=now_ns,
            primary=primary,
            calls=self._calls,
            wait_replicas=wait_replicas,
        )

    def _read(self, key: str, what: str) -> Entry | None:
        answer = self._transport.ask(self._calls.read(key), what)
        return Entry(key, answer[1], int(answer[2])) if len(answer) > 1 else None

    def _scan(self, prefix: str, what: str) -> list[Entry]:
        _, *found = self._transport.ask(self._calls.scan(prefix), what)
        return [Entry(key_text(found[at]), found[at + 1], int(found[at + 2])) for at in range(0, len(found), 3)]

    def _commit(
        self, expect: Mapping[str, int | None], puts: Mapping[str, bytes], deletes: Sequence[str], what: str
    ) -> int:
        answer = self._transport.write_once(self._calls.commit(expect, puts, deletes), what)
        if answer[0] == REFUSED:
            raise self._conflict(expect, answer[1:])
        return int(answer[1])

    def _hold(self, key: str, value: bytes, ttl_ms: int, what: str) -> RedisLease:
        if ttl_ms > TTL_MAX_MS:
            raise ValueError(f"ttl_ms is at most {TTL_MAX_MS} (ten years) for redis, and it is {ttl_ms}")
        answer = self._transport.write_once(self._calls.hold(key, value, ttl_ms), what)
        if answer[0] == REFUSED:
            raise self._conflict({key: None}, answer[1:])
        return RedisLease(self._transport, self._calls, key, int(answer[1]), ttl_ms)

    def _new_watch(self, prefix: str, on_change: OnChange, on_gap: OnGap) -> RedisWatch:
        return RedisWatch(self._watch_settings, prefix, on_change, on_gap, on_close=self._forget)

    def _disconnect(self) -> None:
        self._transport.close()

    def server_version(self) -> str:
        """Version of the server that answers, '' when it may not be asked; raises as a read does."""
        (answer,) = self._transport.query("its version", (b"INFO", b"server"))
        return _info(answer).get("redis_version", "")

    def server_settings(self) -> dict[str, str]:
        """How the primary is set up, as far as it tells us: what decides whether it may forget; raises as a read.

        ``wait_replicas`` is what our URL says. ``known_replicas`` is what the Sentinels know, ``connected_replicas``
        those that follow the primary now. What it does not tell is left out.
        """
        commands: list[Command] = [(b"INFO", section) for section in (b"memory", b"persistence", b"replication")]
        answers = self._transport.query(
            "its settings", *commands, (b"ROLE",), *((b"CONFIG", b"GET", name.encode()) for name in CONFIGURED)
        )
        info: dict[str, str] = {}
        for answer in answers[:3]:
            info |= _info(answer)
        told = {"wait_replicas": str(self._transport.wait_replicas)}
        if "maxmemory_policy" in info:
            told["maxmemory_policy"] = info["maxmemory_policy"]
        if "aof_enabled" in info:
            told["appendonly"] = "yes" if info["aof_enabled"] == "1" else "no"
        role: Any = answers[3]
        if not isinstance(role, Refusal):
            told["role"] = role[0].decode()
            if told["role"] == "master":
                told["connected_replicas"] = str(len(role[2]))
        known = self._transport.known_replicas()
        if known is not None:
            told["known_replicas"] = str(known)
        for name, answer in zip(CONFIGURED, answers[4:], strict=True):
            if not isinstance(answer, Refusal) and len(answer) > 1:
                told[name.replace("-", "_")] = answer[1].decode()
        return told

    def _conflict(self, expect: Mapping[str, int | None], versions: Sequence[Any]) -> Conflict:
        found = {key: int(version) for key, version in zip(expect, versions, strict=True) if version}
        return conflict(self._transport.primary.address, expect, found)


def _info(answer: Any) -> dict[str, str]:
    """The lines of an answer to INFO."""
    if isinstance(answer, Refusal):
        return {}
    lines = (line.partition(":") for line in answer.decode(errors="replace").splitlines() if ":" in line)
    return {name: value for name, _, value in lines}


def _primary(url: StoreUrl, name: str, database: int, *, confirmed: bool, now_ns: clock.NowNs) -> Primary:
    """The way to the server that takes writes: the one of the URL, or that which Sentinels call ``name``."""
    if url.tls is not None:
        client_context(url.tls)
    alike = LinkSettings(tls=url.tls, resolver=Resolver(), now_ns=now_ns)
    settings = replace(alike, login=url.login, database=database)
    if not name:
        return NamedPrimary(url.servers[0], settings, confirmed=confirmed)
    return SentinelPrimary(url.servers, name, settings, replace(alike, login=url.sentinel_login), confirmed=confirmed)


def _path(url: StoreUrl, *, with_sentinel: bool) -> tuple[str, int]:
    """Name of the primary, '' without Sentinel, and number of the database."""
    parts = url.path.removeprefix("/").split("/") if url.path else []
    form = f"{url.scheme}://HOST:PORT/{'NAME/DB' if with_sentinel else 'DB'}"
    name = ""
    if with_sentinel:
        if not parts or not parts[0]:
            raise ValueError(f"a {url.scheme} URL ends in the name that the Sentinels gave to the primary: {form}")
        name = parts.pop(0)
    if len(parts) > 1 or (parts and not (parts[0].isascii() and parts[0].isdecimal())):
        raise ValueError(f"{url.path!r} names no database of Redis; write its number, {form}, or nothing for 0")
    return name, int(parts[0]) if parts else 0


def _guarantees(*, with_sentinel: bool, wait_replicas: int) -> Guarantees:
    if not with_sentinel:
        return GUARANTEES
    declared = SENTINEL_GUARANTEES
    return replace(
        declared,
        fenced=wait_replicas > 0,
        note=declared.note.format(wait_replicas=wait_replicas, fence=_FENCED if wait_replicas else _UNFENCED),
    )
