"""The wheel in clean environments, away from the checkout and beside the package that owns the import name ``agents``.

Needs a package index. Where none answers these tests are skipped with one reason; where everything must run
(``KILLSWITCH_REQUIRE_DOCKER=1`` or ``CI``) they fail instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.package_index import PROBE, is_required, why_no_index

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
KIN = {
    "killswitch/__init__.py": "def protect() -> None:\n    '''Something else.'''\n",
    "kin-2.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: kin\nVersion: 2.0\n",
    "kin-2.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "kin-2.0.dist-info/RECORD": "killswitch/__init__.py,,\nkin-2.0.dist-info/METADATA,,\nkin-2.0.dist-info/WHEEL,,\n"
    "kin-2.0.dist-info/RECORD,,\n",
}
"""A distribution that owns our import name, as the successor of the ``killswitch`` on the public index does."""


class Place:
    """A virtual environment with nothing in it but what is installed here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run([sys.executable, "-m", "venv", str(folder / "env")])

    def program(self, name: str) -> str:
        """Path of a program of this environment."""
        return str(self.folder / "env" / "bin" / name)

    def pip(self, *words: str) -> None:
        """Run this environment's pip."""
        self.run([self.program("pip"), words[0], "--quiet", "--disable-pip-version-check", *words[1:]])

    def python(self, code: str) -> str:
        """Run code; returns what it printed."""
        return self.run([self.program("python"), "-c", code])

    def killswitch(self, *words: str, code: int = 0) -> str:
        """Run the command; returns its stdout."""
        return self.run([self.program("killswitch"), *words], code=code)

    def run(self, words: list[str], *, code: int = 0) -> str:
        """Run a program outside the checkout, without the settings of this run's surroundings."""
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=_surroundings(self.folder),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def _surroundings(home: Path) -> Mapping[str, str]:
    """What a shell of somebody else would have; pip keeps what it knows of the index and its cache."""
    ours = ("KILLSWITCH_", "PYTHON", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    cache = os.environ.get("PIP_CACHE_DIR", str(Path.home() / ".cache" / "pip"))
    return {**kept, "HOME": str(home), "PIP_CACHE_DIR": cache, "TMPDIR": str(home)}


@pytest.fixture(scope="module", autouse=True)
def _index() -> None:
    why = why_no_index()
    if why and is_required():
        pytest.fail(why)
    if why:
        pytest.skip(why)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, as the index would get it."""
    folder = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(words, check=True, timeout=250)
    (made,) = folder.glob("killswitch_cluster-*.whl")
    return made


# With --dist loadgroup each order has a worker of its own.
@pytest.fixture(
    scope="module",
    params=[pytest.param(order, marks=pytest.mark.xdist_group(order)) for order in ("before", "after")],
)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Place:
    """An environment in which ours was installed before or after the package that owns ``agents``."""
    made = Place(tmp_path_factory.mktemp(request.param))
    both = [f"{wheel}[embedded]", PROBE]
    for wanted in both if request.param == "before" else both[::-1]:
        made.pip("install", "--no-compile", wanted)
    return made


def test_a_router_imports_the_gate_and_others_import_agents(place: Place) -> None:
    """Both packages work whichever came second: neither has written over a file of the other."""
    said = place.python(
        "import killswitch; from killswitch import Gate, Mode; from killswitch.risk import RuntimeRiskMonitor\n"
        "from agents import Agent, Runner\n"
        "print(killswitch.__version__, killswitch.__file__, Agent.__module__)"
    )
    version, where, module = said.split()
    assert (place.folder / "env") in Path(where).parents
    assert module.startswith("agents.")
    assert place.killswitch("--version") == f"killswitch, version {version}\n"


def test_agent_and_coordinator_are_ours(place: Place) -> None:
    """The commands start our daemons, and the doctor finds no other owner of a name of ours."""
    assert "--node" in place.killswitch("agent", "run", "--help")
    assert "--id" in place.killswitch("coordinator", "run", "--help")
    (folder,) = place.folder.joinpath("env/lib").glob("python3.*")
    assert (folder / "site-packages/killswitch_agent/agent.py").is_file()
    found = _doctor(place)
    assert [severity for severity, _ in found] == ["ok"]


def test_the_demo_stops_a_cluster(place: Place) -> None:
    """Agents, coordinators, routers and the etcd of the extra, each a process of its own, from the wheel alone."""
    body = json.loads(place.killswitch("demo", "--nodes", "2", "--routers", "1", "-o", "json"))
    assert body["schema"].startswith("killswitch.demo/")


def test_the_wheel_carries_headers_and_defaults(place: Place, wheel: Path) -> None:
    """What a router in C and an operator need is in the wheel, byte for byte; tests and secrets are not."""
    include = Path(place.killswitch("gate", "--include").strip())
    assert (place.folder / "env") in include.parents
    defaults = include.parent / "config_defaults"
    for installed, source in ((include, ROOT / "deploy" / "gate"), (defaults, ROOT / "config")):
        wanted = {path.name: path.read_bytes() for path in source.iterdir()}
        assert {path.name: path.read_bytes() for path in installed.iterdir()} == wanted
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "killswitch", "killswitch_agent", "killswitch_coordinator",
    }  # fmt: skip


def test_a_package_that_takes_our_name_is_told_and_stops_no_freeze(place: Place) -> None:
    """ONE VOICE FREEZES: with ``killswitch/__init__.py`` of somebody else it freezes, and the doctor tells."""
    kin = place.folder / "kin-2.0-py3-none-any.whl"
    with zipfile.ZipFile(kin, "w") as archive:
        for name, text in KIN.items():
            archive.writestr(name, text)
    place.pip("install", "--no-deps", "--no-index", str(kin))
    try:
        assert ("fault", "the distribution kin 2.0 owns killswitch/__init__.py") in [
            (severity, sentence.partition(",")[0]) for severity, sentence in _doctor(place)
        ]
        store = ("--store", f"embedded://{place.folder}/etcd", "--cluster", "c")
        place.killswitch(*store, "init")
        place.killswitch(*store, "freeze", "--reason", "r", "--no-wait", code=3)
    finally:
        place.pip("uninstall", "--yes", "kin")


def _doctor(place: Place) -> list[tuple[str, str]]:
    """Severity and sentence of what the doctor finds about the installation."""
    body = json.loads(place.killswitch("--store", "memory://m", "-o", "json", "doctor", code=1))
    return [(one["severity"], one["sentence"]) for one in body["findings"] if one["topic"] == "install"]
