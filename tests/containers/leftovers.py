"""Who made what in the Docker daemon, and the removal of what a run that was killed could not remove itself.

Everything of a lab carries a label that names the process that made it. Nothing of Python runs when a run is ended by
SIGKILL, and some thirty containers trade on. The next run removes what a process has left that is not there any more.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import docker
import pytest
from docker.errors import APIError, NotFound
from docker.models.networks import Network

from tests.support.waiting import wait_until

LABEL = "org.killswitch.test.lab"
LETS_GO_WITHIN_S = 3.0
ENDED_BY_SIGTERM = 128 + signal.SIGTERM


def owner() -> str:
    """This process, so that no other one of any time is taken for it: ``boot/pid namespace/pid/start``."""
    return "/".join((_boot(), _pid_namespace(), str(os.getpid()), _start_of(os.getpid()) or ""))


def labels() -> dict[str, str]:
    """What everything of this process's labs carries."""
    return {LABEL: owner()}


def is_gone(who: str) -> bool:
    """Tell whether an owner has ended for certain; one of another pid namespace of this boot cannot be looked for."""
    boot, namespace, pid, start = (*who.split("/"), "", "", "", "")[:4]
    if boot != _boot():
        return True
    return namespace == _pid_namespace() and (not pid.isdigit() or _start_of(int(pid)) != start)


def sweep(client: docker.DockerClient) -> list[str]:
    """Remove everything whose owner is gone; return the names."""
    return remove(client, is_gone)


def remove(client: docker.DockerClient, unwanted: Callable[[str], bool]) -> list[str]:
    """Remove the containers, networks and volumes of the owners that ``unwanted`` says yes to; return the names."""
    filters = {"label": LABEL}
    removed = []
    for container in client.containers.list(all=True, filters=filters, ignore_removed=True):
        if unwanted(container.labels[LABEL]):
            removed.append(str(container.name))
            _remove(lambda container=container: container.remove(force=True, v=True))
    for thing in (*client.networks.list(filters=filters), *client.volumes.list(filters=filters)):
        if unwanted(str((thing.attrs.get("Labels") or {}).get(LABEL, ""))):
            removed.append(str(thing.name))
            if isinstance(thing, Network):
                remove_network(thing)
            else:
                _remove(thing.remove)
    return removed


def remove_network(network: Network) -> None:
    """Remove a network whose containers are gone, as far as the daemon can.

    Now and then a daemon keeps an end of a container that it has removed, and refuses until it is started anew. That
    network is empty, the next lab has others, and no scenario is judged by it: it is said, and left.
    """
    refusal = ""

    def is_removed() -> bool:
        nonlocal refusal
        try:
            _remove(network.remove)
        except APIError as error:
            if "active endpoints" not in str(error):
                raise
            refusal = str(error)
            return False
        return True

    try:
        wait_until(is_removed, within_s=LETS_GO_WITHIN_S, what=f"the network {network.name} to be let go")
    except AssertionError:
        print(f"\nDocker keeps the empty network {network.name} until it is started anew: {refusal}", file=sys.stderr)


@contextlib.contextmanager
def removed_on_sigterm() -> Iterator[None]:
    """While this holds, SIGTERM removes everything of this process and ends the run with exit code 143."""

    def end(_: int, __: Any) -> NoReturn:
        # A client of its own: the interrupted call may hold whatever the other client needs.
        remove(docker.from_env(timeout=60), lambda who: who == owner())
        pytest.exit("ended by SIGTERM; the lab's containers were removed", returncode=ENDED_BY_SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _remove(act: Callable[[], object]) -> None:
    """Two that clean up may meet: what is gone is gone, and what another removes just now will be."""
    try:
        act()
    except NotFound:
        return
    except APIError as error:
        if "already in progress" not in str(error):
            raise


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").stat().st_ino)


def _start_of(pid: int) -> str | None:
    """When a process began, in ticks since the boot: a later one of the same number began later."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
