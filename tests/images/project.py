"""Builds the project's own image, and the one that the tests of the cluster in containers stand on.

The pip settings of this machine go into the build as arguments and as one file in the build context; nothing of them is
in the final image (``deploy/Dockerfile``).
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

import docker
from docker.errors import BuildError, DockerException

from tests.images.choose import BUILD_SCRIPT, BUILD_WITHIN_S, give_up, have_or_pull

ROOT = Path(__file__).resolve().parents[2]
BASE_IMAGE = os.environ.get("KILLSWITCH_TEST_BASE_IMAGE") or "debian:bookworm-slim"
"""What the images stand on: Debian bookworm, under whatever name it can be had."""
PROJECT_IMAGE = "killswitch-test/killswitch:local"
LAB_IMAGE = "killswitch-test/killswitch-lab:local"
PROJECT_FILES = ("deploy/Dockerfile", "deploy/gate", "pyproject.toml", "README.md", "LICENSE", "config", "killswitch",
                 "agents", "coordinator")  # fmt: skip
LAB_FILES = ("tests/images/project.Dockerfile", "tests/containers/inside")
PIP_ARGUMENTS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT")


def build_project_images(client: docker.DockerClient) -> str:
    """Build the project's image and the lab's on top of it, as the code stands now; return the lab's name.

    ``KILLSWITCH_TEST_KILLSWITCH_IMAGE`` names an image of the project that is there already and is to be tested.
    Skips the test, or fails where Docker is required, when the base or the packages cannot be had.
    """
    named = os.environ.get("KILLSWITCH_TEST_KILLSWITCH_IMAGE")
    if not named:
        _build_project(client)
    _build(client, LAB_IMAGE, "tests/images/project.Dockerfile", _context(LAB_FILES, {}),
           {"BASE": BASE_IMAGE, "PROJECT": named or PROJECT_IMAGE})  # fmt: skip
    return LAB_IMAGE


def _build_project(client: docker.DockerClient) -> None:
    if not have_or_pull(client, BASE_IMAGE):
        words = [str(BUILD_SCRIPT), "base"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=BUILD_WITHIN_S, check=False)
        if done.returncode != 0:
            give_up(f"{BASE_IMAGE} cannot be pulled and {BUILD_SCRIPT.name} failed: {done.stderr.strip()[-400:]}")
    authority = os.environ.get("PIP_CERT")
    extra = {"deploy/extra-ca.crt": Path(authority)} if authority else {}
    pip = {name: os.environ[name] for name in PIP_ARGUMENTS if os.environ.get(name)}
    _build(client, PROJECT_IMAGE, "deploy/Dockerfile", _context(PROJECT_FILES, extra), {"BASE": BASE_IMAGE, **pip})


def _build(
    client: docker.DockerClient, image: str, dockerfile: str, context: io.BytesIO, arguments: dict[str, str]
) -> None:
    try:
        # The host's network: the daemon's bridge may have no way out.
        client.images.build(
            fileobj=context, custom_context=True, dockerfile=dockerfile, tag=image, buildargs=arguments,
            network_mode="host", rm=True, forcerm=True, timeout=BUILD_WITHIN_S,
        )  # fmt: skip
    except BuildError as error:
        said = "".join(str(line.get("stream", line.get("error", ""))) for line in error.build_log)
        give_up(f"{image} cannot be built from {dockerfile}: {said[-1500:]}")
    except DockerException as error:
        give_up(f"{image} cannot be built from {dockerfile}: {error}")


def _context(names: Iterable[str], extra: dict[str, Path]) -> io.BytesIO:
    """A build context of these files of the repository; the same files give the same bytes, so layers are kept."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in names:
            tar.add(ROOT / name, arcname=name, filter=_plain)
        for name, path in extra.items():
            tar.add(path.resolve(), arcname=name, filter=_plain)
    packed.seek(0)
    return packed


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if "__pycache__" in member.name:
        return None
    member.uid = member.gid = member.mtime = 0
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member
