"""What a person wants to know of a ZooKeeper server before it is trusted."""

from __future__ import annotations

import re

from killswitch.stores._timing import Deadline
from killswitch.stores.port import StoreError, StoreForbidden
from killswitch.stores.zookeeper.channel import Channel
from killswitch.stores.zookeeper.connection import Connection, Unanswered
from killswitch.stores.zookeeper.dial import command, reason

# What ZooKeeper calls it, and what we call it.
SHOWN = {"Mode": "mode", "Node count": "znodes", "Connections": "connections", "Outstanding": "outstanding_requests"}


def server_version(channel: Channel) -> str:
    """Version of the server that answers, such as ``3.8.0``.

    Raises:
        StoreUnavailable: no answer in time.
        StoreForbidden: the server does not answer ``srvr``.
    """
    told = channel.ask(_srvr, "its version")
    version = re.match(r"Zookeeper version: ([0-9.]+)", told)
    if version is None:
        raise StoreForbidden(
            f"ZooKeeper at {channel.address} does not tell its version; add srvr to its 4lw.commands.whitelist"
        )
    return version[1]


def server_settings(channel: Channel) -> dict[str, str]:
    """Facts by name, in the order in which a person reads them; "unknown: ..." where one cannot be had."""
    try:
        server, granted_ms, told = channel.ask(_facts, "its settings")
    except StoreError as error:
        return {"server": f"unknown: {error}"}
    settings = {"server": server, "session_timeout_ms": str(granted_ms)}
    lines = dict(line.split(": ", 1) for line in told.splitlines() if ": " in line)
    if "Mode" not in lines:
        why = "unknown: add srvr to the server's 4lw.commands.whitelist"
        return settings | dict.fromkeys(("read_only", *SHOWN.values()), why)
    settings["read_only"] = "true" if lines["Mode"] == "read-only" else "false"
    return settings | {name: lines[label] for label, name in SHOWN.items() if label in lines}


def _srvr(connection: Connection, deadline: Deadline) -> str:
    try:
        return command(connection.server, "srvr", connection.tls, deadline)
    except OSError as error:
        raise Unanswered(reason(error)) from None


def _facts(connection: Connection, deadline: Deadline) -> tuple[str, int, str]:
    return connection.server, connection.granted_ms, _srvr(connection, deadline)
