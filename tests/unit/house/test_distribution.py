"""The distribution's name and contents, as far as they can be told without building it (tests/packaging builds it)."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import killswitch
from killswitch.doctor.machine import COMMAND, DISTRIBUTION, IMPORT_ROOTS

ROOT = Path(__file__).resolve().parents[3]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WHEEL = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]


def test_the_doctor_knows_the_names_that_are_ours() -> None:
    """Distribution, import roots and command: what pyproject.toml gives away is what the doctor looks for."""
    assert PYPROJECT["project"]["name"] == DISTRIBUTION
    assert {Path(folder).name for folder in WHEEL["packages"]} == IMPORT_ROOTS
    assert list(PYPROJECT["project"]["scripts"]) == [COMMAND]


def test_every_hint_names_the_distribution() -> None:
    """``pip install killswitch`` brings somebody else's package: nothing here says it."""
    files = [
        path
        for top in ("killswitch", "agents", "coordinator", "config", "docs", "deploy", "README.md", "CHANGELOG.md")
        for path in ([ROOT / top] if (ROOT / top).is_file() else (ROOT / top).rglob("*"))
        if path.suffix in {".py", ".md", ".yaml", ".json", ".h", ".c"}
    ]
    hints = [(path, said) for path in files for said in re.findall(r"pip install ['\"]?(\S+)", path.read_text("utf-8"))]
    assert len(hints) >= 4
    assert [(path, said) for path, said in hints if re.match(r"killswitch(?!-cluster\b)", said)] == []


def test_the_version_stands_in_one_place() -> None:
    """The wheel takes its version from ``killswitch.__version__``."""
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "killswitch/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+", killswitch.__version__)


def test_an_image_is_built_of_everything_that_the_wheel_takes() -> None:
    """A folder that the Dockerfile does not copy, or Docker may not see, would end every build of an image."""
    wanted = {*(folder.partition("/")[0] for folder in WHEEL["packages"]), *WHEEL["force-include"]}
    copied = set(re.findall(r"^COPY (\S+) \1$", (ROOT / "deploy/Dockerfile").read_text("utf-8"), re.MULTILINE))
    seen = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE))
    given = set(re.findall(r'"([\w./]+)"', (ROOT / "tests/images/project.py").read_text("utf-8")))
    assert [wanted - copied, wanted - seen, wanted - given] == [set(), set(), set()]
