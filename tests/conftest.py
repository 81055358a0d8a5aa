"""What holds for every test: laws are tried on the same examples each time, and a test that hangs ends alone.

Two things end a test that runs out of time. pytest-timeout raises in it, by a signal, and the next test goes on. Where
no Python code runs any more, in a native call that holds the interpreter, the signal is never seen: a thread of C ends
the process then, and pytest-xdist starts another in its place, which goes on with the next test (docs/testing.md).
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

# No law is judged by its speed: how fast examples are made is a matter of what else the machine does.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", UNHURRIED, derandomize=True)
settings.register_profile("random", UNHURRIED, derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("KILLSWITCH_TEST_LAWS", "repeatable"))

GRACE_S = float(os.environ.get("KILLSWITCH_TEST_GRACE_S", "60"))
"""How long after its time is out a test may take to clear up, before its process is ended."""
LAST_WORDS = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Keep the stderr of this process from before pytest captures it."""
    config.stash[LAST_WORDS] = os.dup(sys.__stderr__.fileno() if sys.__stderr__ else 2)


def pytest_unconfigure(config: pytest.Config) -> None:
    """A thread that a test has left waiting for ever does not keep a run from ending; the exit code is then 1."""
    faulthandler.dump_traceback_later(GRACE_S, exit=True, file=config.stash[LAST_WORDS])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """End the process of a test that cannot be ended in any other way; only where another process takes its place."""
    limit_s = time_limit_s(item)
    if "PYTEST_XDIST_WORKER" not in os.environ or limit_s <= 0:
        return (yield)
    faulthandler.dump_traceback_later(limit_s + GRACE_S, exit=True, file=item.config.stash[LAST_WORDS])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def time_limit_s(item: pytest.Item) -> float:
    """The time that a test has, by its mark or by pyproject.toml; 0 for no limit."""
    marker = item.get_closest_marker("timeout")
    if marker is not None:
        return float(marker.args[0] if marker.args else marker.kwargs["timeout"])
    return float(item.config.getoption("timeout", None) or item.config.getini("timeout") or 0)


class EachTestOnce(LoadFileScheduling):
    """Files side by side; a test that took its process with it has failed, and is not tried again for ever."""

    def remove_node(self, node: WorkerController) -> str | None:
        """Give the files of a process that is gone to another, from after the test that ran."""
        for tests in self.assigned_work[node].values():
            for name, done in tests.items():
                if not done:
                    tests[name] = True
                    super().remove_node(node)
                    return name
        return super().remove_node(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """Take it where files are run side by side."""
    return EachTestOnce(config, log) if config.getoption("dist") == "loadfile" else None
