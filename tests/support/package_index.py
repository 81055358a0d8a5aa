"""Whether a package index answers, so that what needs one says in one line that it did not run."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile

PROBE = "openai-agents"
"""A package that the tests of the wheel install; it owns the import name ``agents``."""
WAIT_S = 20


def is_required() -> bool:
    """Tell whether a machine without an index is a failure: where everything must run."""
    return os.environ.get("KILLSWITCH_REQUIRE_DOCKER") == "1" or bool(os.environ.get("CI"))


@functools.cache
def why_no_index() -> str:
    """Return why no package index can be used, empty when one can."""
    with tempfile.TemporaryDirectory() as folder:
        words = f"download --quiet --no-deps --retries 1 --timeout {WAIT_S} {PROBE} --dest".split()
        try:
            words = [sys.executable, "-m", "pip", *words, folder]
            asked = subprocess.run(words, capture_output=True, timeout=6 * WAIT_S, check=False)
        except subprocess.TimeoutExpired:
            return f"no package index answered within {6 * WAIT_S} s"
    return "" if asked.returncode == 0 else "no package index answers"
