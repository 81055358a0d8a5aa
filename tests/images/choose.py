"""Which container image a test runs, on machines with an image registry and on those without."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import docker
import pytest
from docker.errors import DockerException
from testcontainers.core.config import testcontainers_config

PUBLIC_IMAGES = {
    "etcd": "quay.io/coreos/etcd:v3.5.16",
    "redis": "docker.io/library/redis:7.2",
    "zookeeper": "docker.io/library/zookeeper:3.9",
}
"""What a server's tests run where ``KILLSWITCH_TEST_<NAME>_IMAGE`` names nothing else."""
BUILD_SCRIPT = Path(__file__).with_name("build.sh")
BUILD_WITHIN_S = 900


def require_docker() -> docker.DockerClient:
    """A client of a Docker daemon that answers; skips the test when there is none.

    With ``KILLSWITCH_REQUIRE_DOCKER=1`` it fails instead, so that a pipeline that should run these cannot lose them.
    """
    try:
        client = docker.from_env(timeout=60)
        client.ping()
    except DockerException as error:
        give_up(f"Docker does not answer: {error}")
    return client


def give_up(why: str) -> None:
    """Skip, or fail when Docker is required."""
    if os.environ.get("KILLSWITCH_REQUIRE_DOCKER") == "1":
        pytest.fail(f"{why} (KILLSWITCH_REQUIRE_DOCKER=1)")
    pytest.skip(why)


def choose_image(client: docker.DockerClient, name: str) -> str:
    """The image that the environment names, else the public one, else one built here from Debian packages.

    Args:
        client: of the daemon that will run it.
        name: a key of :data:`PUBLIC_IMAGES`.
    """
    named = os.environ.get(f"KILLSWITCH_TEST_{name.upper()}_IMAGE")
    if named:
        return named
    public, built = PUBLIC_IMAGES[name], f"killswitch-test/{name}:bookworm"
    if _have(client, built):
        return built  # somebody built it here, because the public one could not be had
    if have_or_pull(client, public):
        return public
    done = subprocess.run(
        [str(BUILD_SCRIPT), name], capture_output=True, text=True, timeout=BUILD_WITHIN_S, check=False
    )
    if done.returncode != 0:
        give_up(f"{public} cannot be pulled and {BUILD_SCRIPT.name} failed: {done.stderr.strip()[-400:]}")
    return built


def do_without_ryuk_where_it_cannot_be_had(client: docker.DockerClient) -> None:
    """Turn the reaper of testcontainers off when its image is not there; the fixtures remove their containers."""
    if not have_or_pull(client, testcontainers_config.ryuk_image):
        os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"


def _have(client: docker.DockerClient, image: str) -> bool:
    try:
        client.images.get(image)
    except DockerException:
        return False
    return True


def have_or_pull(client: docker.DockerClient, image: str) -> bool:
    if _have(client, image):
        return True
    try:
        client.images.pull(image)
    except DockerException:
        return False
    return True
