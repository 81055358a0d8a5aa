"""What a person wants to know of a Redis before it is trusted. What it does not tell is left out."""

from __future__ import annotations

from typing import Any

from killswitch.stores.redis.link import Command
from killswitch.stores.redis.refusals import Refusal
from killswitch.stores.redis.transport import RedisTransport

_SETTINGS = ("maxmemory-policy", "appendonly", "appendfsync", "min-replicas-to-write")


def server_version(transport: RedisTransport) -> str:
    """Version of the server, '' when it may not be asked; raises as a read does."""
    (answer,) = transport.query("its version", (b"INFO", b"server"))
    return _info(answer).get("redis_version", "")


def server_settings(transport: RedisTransport) -> dict[str, str]:
    """Facts by name, as far as the user may ask for them; raises as a read does.

    ``wait_replicas`` is what our URL says. ``known_replicas`` is what the Sentinels know, ``connected_replicas`` those
    that follow the primary now.
    """
    names = _SETTINGS
    commands: list[Command] = [(b"INFO", section) for section in (b"memory", b"persistence", b"replication")]
    answers = transport.query(
        "its settings", *commands, (b"ROLE",), *((b"CONFIG", b"GET", name.encode()) for name in names)
    )
    info: dict[str, str] = {}
    for answer in answers[:3]:
        info |= _info(answer)
    told = {"wait_replicas": str(transport.wait_replicas)}
    if "maxmemory_policy" in info:
        told["maxmemory_policy"] = info["maxmemory_policy"]
    if "aof_enabled" in info:
        told["appendonly"] = "yes" if info["aof_enabled"] == "1" else "no"
    role: Any = answers[3]
    if not isinstance(role, Refusal):
        told["role"] = role[0].decode()
        if told["role"] == "master":
            told["connected_replicas"] = str(len(role[2]))
    known = transport.known_replicas()
    if known is not None:
        told["known_replicas"] = str(known)
    for name, answer in zip(names, answers[4:], strict=True):
        if not isinstance(answer, Refusal) and len(answer) > 1:
            told[name.replace("-", "_")] = answer[1].decode()
    return told


def _info(answer: Any) -> dict[str, str]:
    """The lines of an answer to INFO."""
    if isinstance(answer, Refusal):
        return {}
    lines = (line.partition(":") for line in answer.decode(errors="replace").splitlines() if ":" in line)
    return {name: value for name, _, value in lines}
