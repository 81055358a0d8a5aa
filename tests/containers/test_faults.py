"""A fault that did not happen proves nothing, so every verb must notice: each is sabotaged here once and must raise."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.containers import pods
from tests.containers.etcd_servers import EtcdServers
from tests.containers.faults import Faults
from tests.containers.lab import FAKE_CLOCK_NODE, SLOW_NODE, TRAPPED_NODE, Lab
from tests.containers.pods import DidNotTakeHold, Engine, Pod, Process, took_hold

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


def step_while_it_sleeps(lab: Lab, faults: Faults) -> None:
    """The clock that a fresh process reads steps; the agent that was to read it is stopped and has not looked."""
    agent = lab.agent(FAKE_CLOCK_NODE)
    agent.stop()
    try:
        faults.step_wall_clock(FAKE_CLOCK_NODE, 3600)
    finally:
        agent.go_on()


def slow_then_hurry(_: Lab, faults: Faults) -> None:
    """A slow line that took hold, and its end."""
    faults.slow(SLOW_NODE, 150)
    faults.hurry(SLOW_NODE)


def off_then_on(_: Lab, faults: Faults) -> None:
    """A node that lost its power and is given some."""
    faults.power_off("n1")
    faults.power_on("n1")


def pause_the_node_then_resume(lab: Lab, faults: Faults) -> None:
    """Processes that stand, and a node that should go on."""
    for process in lab.processes_of("n1"):
        process.container.pause()
    faults.resume_node("n1")


def hurries_nothing(patch: pytest.MonkeyPatch) -> None:
    """A line can be made slow, and never quick again."""
    real = Faults._set_delay
    patch.setattr(Faults, "_set_delay", lambda self, ms: real(self, ms) if ms else None)


def loses_the_disk(patch: pytest.MonkeyPatch) -> None:
    """The node's disk goes with its power."""
    real = Engine.remove_pod

    def remove_pod(self: Engine, name: str, *, forget: Sequence[str] = ()) -> None:
        real(self, name, forget=[*forget, f"state-{name}"])

    patch.setattr(Engine, "remove_pod", remove_pod)


STOP_AT = "before-second-look"
SABOTAGES: dict[str, tuple[Sabotage, Act]] = {
    "cut": (does_nothing(Pod, "unplug"), lambda _, faults: faults.cut("n1")),
    "heal": (does_nothing(Pod, "plug"), cut_then_heal),
    "slow": (does_nothing(Pod, "write"), lambda _, faults: faults.slow(SLOW_NODE, 100)),
    "hurry": (hurries_nothing, slow_then_hurry),
    "kill": (client_does_nothing("kill"), lambda lab, faults: faults.kill(lab.agent("n1"))),
    "restart": (
        client_does_nothing("start"),
        lambda lab, faults: [faults.kill(lab.agent("n1")), faults.restart(lab.agent("n1"))],
    ),
    "pause": (client_does_nothing("pause"), lambda lab, faults: faults.pause(lab.agent("n1"))),
    "resume": (client_does_nothing("unpause"), pause_then_resume),
    "stop": (does_nothing(Process, "signal"), lambda lab, faults: faults.stop(lab.agent("n1"))),
    "stop: below an init": (does_nothing(Process, "signal"), lambda lab, faults: faults.stop(lab.router("n1-r1"))),
    "wake": (does_nothing(Process, "signal"), stop_then_wake),
    "pause_node": (client_does_nothing("pause"), lambda _, faults: faults.pause_node("n1")),
    "resume_node": (client_does_nothing("unpause"), pause_the_node_then_resume),
    "power_off": (does_nothing(Engine, "remove_pod"), lambda _, faults: faults.power_off("n1")),
    "power_off: only its processes are asked": (client_does_nothing("kill"), lambda _, faults: faults.power_off("n1")),
    "power_on": (loses_the_disk, off_then_on),
    "restart_node": (loses_the_disk, lambda _, faults: faults.restart_node("n1")),
    "stop_router_at": (does_nothing(Pod, "write"), lambda _, faults: faults.stop_router_at(TRAPPED_NODE, STOP_AT)),
    "step_wall_clock": (does_nothing(Pod, "write"), lambda _, faults: faults.step_wall_clock(FAKE_CLOCK_NODE, 3600)),
    "step_wall_clock: the agent does not look": (lambda _: None, step_while_it_sleeps),
    "stop_store_leader": (client_does_nothing("kill"), lambda _, faults: faults.stop_store_leader()),
    "pause_store_leader": (client_does_nothing("pause"), lambda _, faults: faults.pause_store_leader()),
    "stop_store_majority": (client_does_nothing("kill"), lambda _, faults: faults.stop_store_majority()),
    "restore_store": (restores_nothing, save_then_restore),
    "lose_store_data": (removes_nothing, lambda _, faults: faults.lose_store_data()),
}  # fmt: skip
"""By the verb; after a colon, another way in which the same verb may do nothing."""

ON_SENTINEL = "tests.containers.test_other_stores"
ELSEWHERE: dict[str, tuple[str, str]] = {
    "stop_replicating": (ON_SENTINEL, "test_a_replica_that_was_not_cut_off_is_noticed"),
    "fail_over": (ON_SENTINEL, "test_a_replica_that_has_heard_of_the_freeze_is_noticed"),
}
"""Verbs of another store, with module and test that take their effect away."""

NO_FAULT = {
    "heal_all": "it calls what the other verbs left to be undone, each of which checks",
    "twin_of": "it starts a process, and its scenario waits for the end of just that one",
}
"""Public names of Faults that are no verb whose effect could fail to come, and why."""

DATA_FAULTS = ("restore_store", "lose_store_data")
"""They leave a store without its data behind, so each has a cluster of its own below."""


def test_no_verb_is_without_a_sabotage() -> None:
    """Every public verb is sabotaged here or on the store that knows it, or is no fault for a reason that is given."""
    verbs = {name for name, value in vars(Faults).items() if callable(value) and not name.startswith("_")}
    here = {name.partition(":")[0] for name in SABOTAGES}
    assert here | set(ELSEWHERE) | set(NO_FAULT) == verbs
    assert not here & set(ELSEWHERE) | here & set(NO_FAULT) | set(ELSEWHERE) & set(NO_FAULT)
    for module, test in ELSEWHERE.values():
        assert callable(getattr(importlib.import_module(module), test))


@pytest.mark.parametrize(
    ("verb", "words", "only"),
    [("slow", (100,), SLOW_NODE), ("hurry", (), SLOW_NODE), ("step_wall_clock", (3600,), FAKE_CLOCK_NODE),
     ("stop_router_at", (STOP_AT,), TRAPPED_NODE)],
)  # fmt: skip
def test_a_node_without_the_lever_is_refused(verb: str, words: tuple[Any, ...], only: str) -> None:
    """A fault is never made on another node than the scenario names."""
    nowhere = Faults(None)  # type: ignore[arg-type] # refused before anything of the cluster is looked at
    with pytest.raises(ValueError, match=f"n2 does not have .*; {only} does"):
        getattr(nowhere, verb)("n2", *words)


@pytest.mark.parametrize("verb", [name for name in SABOTAGES if name not in DATA_FAULTS])
def test_a_fault_that_did_not_take_hold_is_noticed(
    lab: Lab, faults: Faults, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """No scenario goes on after a fault that was only asked for."""
    assert_noticed(lab, faults, monkeypatch, *SABOTAGES[verb])


@pytest.mark.fresh_after
@pytest.mark.parametrize("verb", DATA_FAULTS)
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
