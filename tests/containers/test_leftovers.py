"""What a run leaves behind when it is killed goes with the next one; what a living run has made stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import docker
import pytest

from tests.containers import pods
from tests.containers.conftest import Keeper
from tests.containers.leftovers import ENDED_BY_SIGTERM, LABEL, is_gone, owner, sweep
from tests.containers.pods import Engine, Process, require_near_daemon
from tests.images.project import LAB_IMAGE

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

A_RUN = f"""
import sys, time
import docker, pytest
from tests.containers.leftovers import owner, removed_on_sigterm
from tests.containers.pods import Engine
engine = Engine(docker.from_env(), {LAB_IMAGE!r})
with removed_on_sigterm():
    engine.pod("one", ["control"], volumes={{"/disk": "disk"}})
    print(owner(), flush=True)
    try:
        time.sleep(600)
    except pytest.exit.Exception as ended:
        sys.exit(ended.returncode)
"""


@contextmanager
def another_run() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another run that has made a pod, and its owner's name."""
    with subprocess.Popen([sys.executable, "-c", A_RUN], stdout=subprocess.PIPE, text=True) as run:
        try:
            assert run.stdout is not None
            yield run, run.stdout.readline().strip()
        finally:
            run.kill()


def of(client: docker.DockerClient, who: str) -> list[str]:
    """Kinds of what an owner has in the daemon."""
    mine = {"label": f"{LABEL}={who}"}
    return [
        *("container" for _ in client.containers.list(all=True, filters=mine)),
        *("network" for _ in client.networks.list(filters=mine)),
        *("volume" for _ in client.volumes.list(filters=mine)),
    ]


@pytest.fixture
def client(keeper: Keeper) -> docker.DockerClient:
    """Of the daemon, in which the lab's image has been built."""
    return docker.from_env(timeout=60)


def test_what_a_killed_run_has_left_goes_with_the_next(client: docker.DockerClient) -> None:
    """SIGKILL, as by a scenario that takes too long: nobody takes a living run's pod, and the next one a dead run's."""
    with another_run() as (run, who):
        assert of(client, who) == ["container", "network", "volume"]
        assert not is_gone(who)
        sweep(client)
        assert of(client, who) == ["container", "network", "volume"]
        run.kill()
        run.wait(timeout=30)
        assert is_gone(who)
        Keeper()
        assert of(client, who) == []


def test_a_run_that_is_told_to_end_takes_its_pods_along(client: docker.DockerClient) -> None:
    """SIGTERM, as a pipeline that is called off."""
    with another_run() as (run, who):
        assert of(client, who) == ["container", "network", "volume"]
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=60) == ENDED_BY_SIGTERM
        assert of(client, who) == []


def test_who_cannot_be_looked_for_is_not_called_gone() -> None:
    """Another boot's processes have ended; those of another pid namespace of this boot may run."""
    boot, namespace, pid, start = owner().split("/")
    assert not is_gone(owner())
    assert is_gone(f"{boot}/{namespace}/{pid}/{int(start) + 1}")
    assert is_gone(f"another-boot/{namespace}/{pid}/{start}")
    assert not is_gone(f"{boot}/1/{pid}/{start}")


def test_a_daemon_whose_processes_cannot_be_seen_is_refused(
    client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon on another machine names processes that are others here, and the kernel would be asked for those."""
    monkeypatch.setattr(Process, "_pid", lambda _: os.getpid())
    monkeypatch.setattr(pods, "TAKES_HOLD_WITHIN_S", 1.0)
    engine = Engine(client, LAB_IMAGE)
    try:
        with pytest.raises((pytest.fail.Exception, pytest.skip.Exception), match="unset DOCKER_HOST"):
            require_near_daemon(engine)
    finally:
        engine.close()


def test_all_that_a_lab_makes_is_labelled(client: docker.DockerClient) -> None:
    """Containers by the pod, by the process and by the switch."""
    engine = Engine(client, LAB_IMAGE)
    try:
        engine.pod("one", ["control"]).start("more", ["infinity"], entrypoint=["sleep"])
        made = {engine.switch.name, *(f"{engine.run_id}-{name}" for name in ("one", "one-more"))}
        labelled = client.containers.list(all=True, filters={"label": f"{LABEL}={owner()}"})
        assert made <= {container.name for container in labelled}
    finally:
        engine.close()
