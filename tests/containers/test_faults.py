"""A fault that did not happen proves nothing, so every verb must notice: each is sabotaged here once and must raise."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.containers import pods
from tests.containers.etcd_servers import EtcdServers
from tests.containers.faults import Faults
from tests.containers.lab import Lab
from tests.containers.pods import DidNotTakeHold, Pod, Process, took_hold

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

Sabotage = Callable[[pytest.MonkeyPatch], None]
Act = Callable[[Lab, Faults], object]


def does_nothing(owner: type, method: str) -> Sabotage:
    """The method returns at once and does nothing."""
    return lambda patch: patch.setattr(owner, method, lambda *_, **__: None)


def client_does_nothing(method: str) -> Sabotage:
    """Docker is never asked to do it."""

    def sabotage(patch: pytest.MonkeyPatch) -> None:
        from docker.models.containers import Container  # noqa: PLC0415 - only its class is needed, and only here

        patch.setattr(Container, method, lambda *_, **__: None)

    return sabotage


def restores_nothing(patch: pytest.MonkeyPatch) -> None:
    """The snapshot is not unpacked, and the members come back empty."""
    patch.setattr(EtcdServers, "_restore_words", lambda *_: ["--help"])


def removes_nothing(patch: pytest.MonkeyPatch) -> None:
    """No file is ever removed in a pod."""
    real = Pod.exec

    def exec_(self: Pod, *words: str, user: str = "") -> str:
        return "" if words[0] == "rm" else real(self, *words, user=user)

    patch.setattr(Pod, "exec", exec_)


def stop_then_wake(lab: Lab, faults: Faults) -> None:
    """A stop that took hold, and its end."""
    router = lab.router("n1-r1")
    router.exec("sh", "-c", "kill -s STOP -- -1")
    took_hold(lambda: router.states("T"), f"{router.name}: stopped by a signal")
    faults.wake(router)


def cut_then_heal(_: Lab, faults: Faults) -> None:
    """A cut that took hold, and its healing."""
    faults.cut("n1")
    faults.heal("n1")


def pause_then_resume(lab: Lab, faults: Faults) -> None:
    """A pause that took hold, and its end."""
    lab.agent("n1").container.pause()
    faults.resume(lab.agent("n1"))


def save_then_restore(lab: Lab, faults: Faults) -> None:
    """A snapshot that was saved, and its restoring."""
    lab.servers.save_snapshot()
    faults.restore_store()


SABOTAGES: dict[str, tuple[Sabotage, Act]] = {
    "cut": (does_nothing(Pod, "unplug"), lambda _, faults: faults.cut("n1")),
    "heal": (does_nothing(Pod, "plug"), cut_then_heal),
    "slow": (does_nothing(Pod, "write"), lambda _, faults: faults.slow(100)),
    "kill": (client_does_nothing("kill"), lambda lab, faults: faults.kill(lab.agent("n1"))),
    "restart": (client_does_nothing("start"), lambda lab, faults: [lab.agent("n1").kill(), lab.agent("n1").start()]),
    "pause": (client_does_nothing("pause"), lambda lab, faults: faults.pause(lab.agent("n1"))),
    "resume": (client_does_nothing("unpause"), pause_then_resume),
    "stop": (does_nothing(Process, "signal"), lambda lab, faults: faults.stop(lab.agent("n1"))),
    "stop below an init": (does_nothing(Process, "signal"), lambda lab, faults: faults.stop(lab.router("n1-r1"))),
    "wake": (does_nothing(Process, "signal"), stop_then_wake),
    "stop router at": (does_nothing(Pod, "write"), lambda _, faults: faults.stop_router_at("before-second-look")),
    "step wall clock": (does_nothing(Pod, "write"), lambda _, faults: faults.step_wall_clock(3600)),
    "stop store leader": (client_does_nothing("kill"), lambda _, faults: faults.stop_store_leader()),
    "pause store leader": (client_does_nothing("pause"), lambda _, faults: faults.pause_store_leader()),
    "stop store majority": (client_does_nothing("kill"), lambda _, faults: faults.stop_store_majority()),
    "restore store": (restores_nothing, save_then_restore),
    "lose store data": (removes_nothing, lambda _, faults: faults.lose_store_data()),
}

DATA_FAULTS = ("restore store", "lose store data")
"""They leave a store without its data behind, so each has a cluster of its own below."""


@pytest.mark.parametrize("verb", [name for name in SABOTAGES if name not in DATA_FAULTS])
def test_a_fault_that_did_not_take_hold_is_noticed(
    lab: Lab, faults: Faults, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """No scenario goes on after a fault that was only asked for."""
    assert_noticed(lab, faults, monkeypatch, *SABOTAGES[verb])


@pytest.mark.fresh_after
@pytest.mark.parametrize("verb", ["restore store", "lose store data"])
def test_lost_data_that_is_still_there_is_noticed(
    lab: Lab, faults: Faults, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """The store's data is checked as well."""
    assert_noticed(lab, faults, monkeypatch, *SABOTAGES[verb])


def assert_noticed(lab: Lab, faults: Faults, monkeypatch: pytest.MonkeyPatch, sabotage: Sabotage, act: Act) -> None:
    """With its effect taken away, the verb raises."""
    monkeypatch.setattr(pods, "TAKES_HOLD_WITHIN_S", 1.0)
    with monkeypatch.context() as patch:
        sabotage(patch)
        with pytest.raises(DidNotTakeHold):
            act(lab, faults)
