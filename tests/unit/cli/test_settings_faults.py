"""A fault in settings that a command does not use is said, with its place, and stops nothing that an operator does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner, Result

from killswitch.cli import cli, context
from killswitch.cluster.cluster import Cluster
from killswitch.core.modes import Mode
from killswitch.core.permit import MAX_CLOCK_RATE_RATIO
from killswitch.settings.config import Settings, load_needed_settings
from killswitch.stores.memory import MemoryStore

Run = Callable[..., Result]
FREEZE = ("freeze", "--reason", "r", "--no-wait")
"""Exits 3: in force, and not proven, since nobody waits for the proof."""

BROKEN_ELSEWHERE = [
    ("coordinator: {rules: {drawdown: {hard_usd: -5}}}", "k.yaml:2: coordinator.rules.drawdown.hard_usd: input should"),
    ("coordinator: {rulez: {}}", "k.yaml:2: coordinator.rulez: there is no such setting; did you mean 'rules'?"),
    ("agent: {gate: '/tmp/{pod}/gate'}", "k.yaml:2: agent.gate: only {cluster} may stand in braces"),
    ("agent: {http_port: 1}\nagent: {http_port: 2}", "k.yaml:3: agent: is given twice"),
    ("coordinatr: {}", "k.yaml:2: coordinatr: there is no such setting; did you mean 'coordinator'?"),
    ("timing: {permit_ttl_ms: 200}", "k.yaml:2: timing: 3 * renew_every_ms (1500) must be <= permit_ttl_ms (200)"),
    ("timing:\n  renew_every_ms: 400\n  renew_every_ms: 500", "k.yaml:4: timing.renew_every_ms: is given twice"),
]
READERS = [("status",), ("history",), ("nodes",), ("exposure",), ("watch", "--count", "1")]


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings from outside; what a command has set up for its log is undone."""
    for name in list(os.environ):
        if name.upper().startswith("KILLSWITCH_"):
            monkeypatch.delenv(name)
    yield
    structlog.reset_defaults()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """The cluster that the commands work on, at epoch 1."""
    with MemoryStore(uuid.uuid4().hex) as store:
        made = Cluster(store, "c")
        made.initialise(actor="a", reason="r")
        yield made


@pytest.fixture
def run(cluster: Cluster, tmp_path: Path) -> Run:
    """Run a command with a file whose first line names the store of the test."""

    def invoke(text: str, *args: str) -> Result:
        config = tmp_path / "k.yaml"
        config.write_text(f"store: {cluster.store.address}\n{text}\n", encoding="utf-8")
        result = CliRunner().invoke(cli, ["--config", str(config), *args])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return invoke


def mode_of(cluster: Cluster) -> Mode:
    """What the flag says."""
    return cluster.read_flag().flag.mode


@pytest.mark.parametrize(("text", "sentence"), BROKEN_ELSEWHERE)
def test_one_voice_freezes_whatever_is_wrong_with_the_settings_of_others(
    run: Run, cluster: Cluster, text: str, sentence: str
) -> None:
    """ONE VOICE FREEZES: a fault in a part that a freeze does not use is said, with path and line, and it freezes."""
    result = run(text, "--cluster", "c", *FREEZE)
    assert (result.exit_code, mode_of(cluster)) == (3, Mode.FROZEN)
    assert sentence in result.stderr


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("KILLSWITCH_TIMNG__PERMIT_TTL_MS", "did you mean KILLSWITCH_TIMING__PERMIT_TTL_MS?"),
        ("KILLSWITCH_CLUSTR", "did you mean KILLSWITCH_CLUSTER?"),
        ("KILLSWITCH_TIMING", "KILLSWITCH_TIMING: timing: is no JSON"),
    ],
)
def test_one_voice_freezes_whatever_variable_nobody_knows(
    run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, name: str, sentence: str
) -> None:
    """ONE VOICE FREEZES: a variable that is no setting is said by its name, and it freezes."""
    monkeypatch.setenv(name, "1900 of them")
    result = run("cluster: c", *FREEZE)
    assert (result.exit_code, mode_of(cluster)) == (3, Mode.FROZEN)
    assert f"{name}: " in result.stderr
    assert sentence in result.stderr


@pytest.mark.parametrize("command", [*READERS, ("release", "--epoch", "1", "--reason", "r", "--yes")])
def test_what_reads_and_releases_goes_on_too(run: Run, cluster: Cluster, command: tuple[str, ...]) -> None:
    """The other commands of an operator say the fault and do their work, stdout as ever."""
    if command[0] == "release":
        assert run("cluster: c", *FREEZE).exit_code == 3
        command = ("release", "--epoch", "2", *command[3:])
    result = run("cluster: c\ncoordinator: {rules: {drawdown: {hard_usd: -5}}}", "-o", "json", *command)
    assert (result.exit_code, mode_of(cluster)) == (0, Mode.ACTIVE)
    assert json.loads(result.stdout)["schema"].startswith("killswitch.")
    assert "k.yaml:3: coordinator.rules.drawdown.hard_usd: " in result.stderr
    assert "takes coordinator as built in" in result.stderr


def test_the_doctor_says_the_fault_once_and_examines(run: Run) -> None:
    """The doctor asks each store with the settings that it has, and does not read them anew for each."""
    result = run("cluster: c\ncoordinator: {rules: {drawdown: {hard_usd: -5}}}", "doctor")
    assert result.exit_code in (0, 1)
    assert result.stderr.count("coordinator.rules.drawdown.hard_usd") == 1


def test_the_doctor_finds_no_cluster_well_whose_agents_would_not_start(run: Run) -> None:
    """PROOF, NOT HOPE: a fault of the settings is a finding, and no bounds are told that nobody has set."""
    result = run("cluster: c\ntiming: {permit_ttl_ms: 200}", "-o", "json", "doctor")
    found = json.loads(result.stdout)["findings"]
    assert [one["severity"] for one in found if "k.yaml:3: timing: 3 * renew_every_ms" in one["sentence"]] == ["fault"]
    assert (result.exit_code, [one for one in found if one["topic"] == "timing"]) == (1, [])


def test_a_silent_node_is_proven_stopped_by_no_clock_rate_that_nobody_has_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PROOF, NOT HOPE: with timing that cannot be used a permit may end as late as any sound timing lets it."""
    text = "timing: {clock_rate_ratio: 1.4}"
    (tmp_path / "k.yaml").write_text(f"cluster: c\nstore: memory://s\n{text}\n", encoding="utf-8")
    settings, faults = load_needed_settings(tmp_path / "k.yaml", {}, ("cluster", "store"))
    assert faults == []
    assert settings.timing.clock_rate_ratio == 1.4
    (tmp_path / "k.yaml").write_text(
        f"cluster: c\nstore: memory://s\n{text}\ncoordinator: {{rulez: 1}}\n", encoding="utf-8"
    )
    assert load_needed_settings(tmp_path / "k.yaml", {}, ("cluster", "store"))[0].timing.clock_rate_ratio == 1.4
    for broken in (
        "timing: {clock_rate_ratio: 1.4, permit_ttl_ms: 200}",
        "timng: {clock_rate_ratio: 1.4}",
        "timing: [",
    ):
        (tmp_path / "k.yaml").write_text(f"cluster: c\nstore: memory://s\n{broken}\n", encoding="utf-8")
        options = {"cluster": "c", "store": ["memory://s"]}
        settings, _ = load_needed_settings(tmp_path / "k.yaml", options, ("cluster", "store"))
        assert settings.timing.clock_rate_ratio == MAX_CLOCK_RATE_RATIO
    for name, value in (("KILLSWITCH_TIMING", "{clock_rate_ratio"), ("KILLSWITCH_TIMING__CLOCK_RATE", "1.4")):
        monkeypatch.setenv(name, value)
        settings, _ = load_needed_settings(None, {"cluster": "c", "store": ["memory://s"]}, ("cluster", "store"))
        assert settings.timing.clock_rate_ratio == MAX_CLOCK_RATE_RATIO, name
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cluster: a/b", "k.yaml:2: cluster: string should match pattern"),
        ("clustr: c", "k.yaml:2: clustr: there is no such setting; did you mean 'cluster'?"),
        ("cluster: d\ncluster: c", "k.yaml:3: cluster: is given twice"),
        ("cluster: c\nstore: memory://other", "k.yaml:3: store: is given twice"),
    ],
)
def test_a_fault_of_cluster_or_store_keeps_a_freeze_from_the_wrong_cluster(
    run: Run, cluster: Cluster, text: str, sentence: str
) -> None:
    """A freeze of another cluster would look like one of this: what cannot be told is not guessed."""
    result = run(text, *FREEZE)
    assert (result.exit_code, result.stdout, mode_of(cluster)) == (2, "", Mode.ACTIVE)
    assert sentence in result.stderr


def test_a_variable_that_may_have_meant_the_cluster_stops_a_freeze_where_nothing_else_names_it(
    run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KILLSWITCH_CLUSTR", "c")
    assert run("", *FREEZE).exit_code == 2
    assert mode_of(cluster) is Mode.ACTIVE
    assert run("", "--cluster", "c", *FREEZE).exit_code == 3


@pytest.mark.parametrize("text", ["timing: [", "- a list", "\0"])
def test_a_file_that_is_no_yaml_stops_a_freeze_only_where_cluster_or_store_could_stand_in_it(
    run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """ONE VOICE FREEZES: with both named elsewhere it is said, and it freezes with the built-in timing."""
    assert run(text, "--cluster", "c", *FREEZE).exit_code == 2
    assert mode_of(cluster) is Mode.ACTIVE
    monkeypatch.setenv("KILLSWITCH_STORE", cluster.store.address)
    result = run(text, "--cluster", "c", *FREEZE)
    assert (result.exit_code, mode_of(cluster)) == (3, Mode.FROZEN)
    assert "k.yaml: " in result.stderr
    assert "takes timing, agent, coordinator as built in" in result.stderr


def test_a_freeze_needs_no_stderr(run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONE VOICE FREEZES: what is wrong elsewhere cannot be said, and it freezes all the same."""

    def talk(text: str) -> None:
        if "coordinator" in text:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(context, "talk", talk)
    assert run("cluster: c\ncoordinator: {rulez: {}}", *FREEZE).exit_code == 3
    assert mode_of(cluster) is Mode.FROZEN


def test_what_writes_settings_down_or_runs_by_them_refuses_any_fault(run: Run, cluster: Cluster) -> None:
    """A daemon, a new cluster and the check go by all of the settings: one sentence for each fault, exit 2."""
    text = "cluster: c\ntiming: {permit_ttl_ms: 200}\ncoordinator: {rules: {drawdown: {hard_usd: -5}}}"
    for command in (
        ("config", "check"),
        ("init",),
        ("agent", "run", "--node", "n"),
        ("coordinator", "run", "--id", "a"),
    ):
        result = run(text, *command)
        assert (result.exit_code, result.stdout) == (2, ""), command
        assert "timing: 3 * renew_every_ms" in result.stderr
        assert "coordinator.rules.drawdown.hard_usd" in result.stderr


def test_the_check_tells_everything_at_once(run: Run, tmp_path: Path) -> None:
    """What is wrong in the files of limits is told beside what is wrong in the settings, each with its place."""
    limits = tmp_path / "limits.yaml"
    limits.write_text("max_daily_drawdown: 2\n", encoding="utf-8")
    text = f"clustr: c\ncoordinator: {{rulez: {{}}}}\nagent: {{risk_limits: '{limits}'}}\ntiming: {{}}\ntiming: {{}}"
    result = run(text, "config", "check")
    assert (result.exit_code, result.stdout) == (2, "")
    told = [line.removeprefix("Error: ").split(":")[:3] for line in result.stderr.splitlines()]
    assert [(Path(path).name, line, setting.strip()) for path, line, setting in told] == [
        ("k.yaml", "6", "timing"),
        ("k.yaml", "3", "coordinator.rulez"),
        ("k.yaml", "2", "clustr"),
        ("limits.yaml", "1", "max_daily_drawdown"),
    ]


def test_a_freeze_does_not_load_what_only_sections_in_the_environment_need() -> None:
    """Loading pydantic-settings takes a fifth of a second, and a freeze is in a hurry."""
    code = (
        "import os, sys; os.environ['KILLSWITCH_CLUSTER'] = 'c'\n"
        "from killswitch.settings.config import load_settings\n"
        "assert load_settings(None).cluster == 'c'\n"
        "assert 'pydantic_settings' not in sys.modules\n"
        "os.environ['KILLSWITCH_TIMING__PERMIT_TTL_MS'] = '1900'\n"
        "assert load_settings(None).timing.permit_ttl_ms == 1900\n"
        "assert 'pydantic_settings' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_timing_of_the_file_holds_where_the_fault_is_elsewhere(tmp_path: Path) -> None:
    """A fault elsewhere takes nothing from the timing: a freeze waits for its proof as long as the settings say."""
    path = tmp_path / "k.yaml"
    path.write_text("timing: {permit_ttl_ms: 1900}\nagent: {gatee: x}\n", encoding="utf-8")
    given = {"cluster": "c", "store": "memory://x"}
    settings, told = load_needed_settings(path, given, ("cluster", "store"))
    assert (settings.timing.permit_ttl_ms, settings.agent) == (1_900, Settings().agent)
    assert told == [
        f"{path}:2: agent.gatee: there is no such setting; did you mean 'gate'?",
        "this does not stop the command, which takes agent as built in",
    ]
