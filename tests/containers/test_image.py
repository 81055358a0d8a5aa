"""The project's own image, as a cluster runs it."""

from __future__ import annotations

import pytest

from tests.containers.lab import Lab
from tests.images.project import BASE_IMAGE, PROJECT_IMAGE

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

OURS_MAX_BYTES = 150_000_000
"""Python, the dependencies and the code: what the image adds to its base."""


def test_the_image_is_small_and_runs_as_nobody_who_may_do_anything(lab: Lab) -> None:
    """What runs in it is no root, cannot change its own code, and there is little beside it."""
    images = lab.engine.client.images
    image, base = images.get(PROJECT_IMAGE), images.get(BASE_IMAGE)
    assert image.attrs["Config"]["User"] == "10001:10001"
    assert image.attrs["Size"] - base.attrs["Size"] < OURS_MAX_BYTES
    for process in (lab.agent("n1"), lab.coordinator("c1")):
        assert process.exec("id", "-u").strip() == "10001"
        code, _ = process.container.exec_run(["sh", "-c", "touch /opt/killswitch/x || touch /usr/x || touch /etc/x"])
        assert code != 0
        assert process.container.exec_run(["sh", "-c", "command -v pip || command -v gcc"])[0] != 0
