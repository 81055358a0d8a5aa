"""The anomaly detector: it tells a seeded crash, leaves calm days alone, and never learns what it tells."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from river.anomaly import HalfSpaceTrees

from killswitch.risk import AnomalyDetector, AnomalyMonitor, AnomalySettings
from killswitch.risk.figures.anomaly import AnomalyUnavailable

MOST_ANOMALOUS_WHEN_CALM = 0.06
"""Share of single readings of a calm day that may score as anomalous."""

MOST_CONFIRMED_WHEN_CALM = 0.002
"""Share of readings of a calm day that may be confirmed."""

SMALL: dict[str, Any] = {"n_trees": 10, "window_observations": 50, "warmup_observations": 100}
Features = dict[str, float]


def reading(rng: random.Random, *, crash: bool = False) -> Features:
    """One minute: of a calm market, or of a fall of 40 basis points a minute in which spread and volume grow."""
    return_bps = rng.gauss(-40, 25) if crash else rng.gauss(0, 4)
    range_bps = abs(rng.gauss(0, 60 if crash else 6)) + abs(return_bps)
    return {"return_bps": return_bps, "range_bps": range_bps, "log_volume": rng.gauss(16 if crash else 14, 0.4)}


def warmed(rng: random.Random, **changes: Any) -> AnomalyDetector:
    detector = AnomalyDetector(AnomalySettings(**{**SMALL, **changes}))
    for _ in range(changes.get("warmup_observations", SMALL["warmup_observations"])):
        assert detector.observe(reading(rng)).warming_up
    return detector


# ---- calm and crash


@pytest.mark.parametrize("seed", range(4))
def test_a_crash_is_confirmed_within_minutes_and_a_calm_day_is_not(seed: int) -> None:
    """With the settings that ship: a day of calm, then an hour of crash."""
    rng = random.Random(seed)
    detector = AnomalyDetector(AnomalySettings(seed=seed))
    for _ in range(500):
        detector.observe(reading(rng))
    calm = [detector.observe(reading(rng)) for _ in range(1_440)]
    crash = [detector.observe(reading(rng, crash=True)) for _ in range(60)]
    after = [detector.observe(reading(rng)) for _ in range(60)]
    assert sum(said.anomalous for said in calm) <= MOST_ANOMALOUS_WHEN_CALM * len(calm)
    assert sum(said.confirmed for said in calm) <= MOST_CONFIRMED_WHEN_CALM * len(calm)
    assert any(said.confirmed for said in crash[:10])
    assert sum(said.anomalous for said in crash) >= 0.8 * len(crash)
    assert sum(said.confirmed for said in after[5:]) == 0


def test_what_is_usual_does_not_shrink_over_days() -> None:
    """Readings that are told by chance are not learned; that must not make ever more of them."""
    rng = random.Random(11)
    detector = AnomalyDetector(AnomalySettings())
    for _ in range(500):
        detector.observe(reading(rng))
    for _ in range(4):
        told = sum(detector.observe(reading(rng)).anomalous for _ in range(2_500))
        assert told <= MOST_ANOMALOUS_WHEN_CALM * 2_500


def test_a_lasting_anomaly_never_becomes_usual() -> None:
    """Ten windows of one anomaly, and the last is as anomalous as the first; also with calm readings in between."""
    rng = random.Random(2)
    detector = warmed(rng)
    lasting = {"return_bps": -16.0, "range_bps": 30.0, "log_volume": 16.5}
    scores = []
    for number in range(500):
        said = detector.observe(lasting)
        assert said.anomalous, f"reading {number}: {said.sentence}"
        assert "not learned" in said.sentence
        scores.append(said.score)
        if number % 2:
            detector.observe(reading(rng))
    assert scores[-1] == pytest.approx(scores[0], abs=0.02)


def test_the_trees_alone_never_learn_a_lasting_anomaly() -> None:
    rng = random.Random(2)
    detector = warmed(rng, max_outside_widths=None, n_trees=25)
    lasting = {"return_bps": -400.0, "range_bps": 900.0, "log_volume": 30.0}
    assert all(detector.observe(lasting).anomalous for _ in range(500))


def test_a_person_may_say_that_it_is_the_new_usual() -> None:
    rng = random.Random(2)
    detector = warmed(rng)
    assert detector.observe(reading(rng, crash=True) | {"log_volume": 90.0}).anomalous
    detector.relearn()
    said = [detector.observe(reading(rng, crash=True)) for _ in range(300)]
    assert all(one.warming_up and not one.anomalous for one in said[:100])
    assert sum(one.anomalous for one in said[100:]) < 40


def test_confirmed_is_so_many_in_a_row() -> None:
    rng = random.Random(3)
    detector = warmed(rng, confirmations=3, threshold=0.99)  # so high that calm readings never reach it
    odd = reading(rng) | {"return_bps": 1e6}
    said = [detector.observe(odd).confirmed for _ in range(4)]
    assert said == [False, False, True, True]
    assert not detector.observe(reading(rng)).confirmed
    assert not detector.observe(odd).confirmed


def test_one_feature_far_outside_is_told_whatever_the_trees_say() -> None:
    """Half-space trees average: one of four features gone astray does not reach the threshold, so limits are asked."""
    rng = random.Random(4)
    for name, value in (("const", 500.0), ("const", 5.1), ("log_volume", 30.0)):
        plain = warmed_with_constant(rng, max_outside_widths=None)
        guarded = warmed_with_constant(rng)
        odd = reading(rng) | {"const": 5.0, name: value}
        assert not plain.observe(odd).anomalous
        said = guarded.observe(odd)
        assert said.anomalous
        assert said.score == 1.0
        assert name in said.sentence
        assert not guarded.observe(reading(rng) | {"const": 5.0}).fault


def warmed_with_constant(rng: random.Random, **changes: Any) -> AnomalyDetector:
    detector = AnomalyDetector(AnomalySettings(**{**SMALL, **changes}))
    for _ in range(100):
        detector.observe(reading(rng) | {"const": 5.0})
    return detector


def test_a_wild_reading_hides_nothing_that_comes_after_it() -> None:
    """The limits are those of the warm-up: with or without a wild reading, all later scores are the same."""
    one, other = warmed(random.Random(5)), warmed(random.Random(5))
    one.observe({"return_bps": -1e9, "range_bps": 1e9, "log_volume": 1e3})
    rng = random.Random(6)
    later = [reading(rng, crash=number > 50) for number in range(100)]
    assert [one.observe(x).score for x in later] == [other.observe(x).score for x in later]


# ---- the same as the library


def test_scores_are_those_of_the_library() -> None:
    """Beside bare half-space trees that are given the same limits and the same readings."""
    rng = random.Random(7)
    warmup = [reading(rng) for _ in range(100)]
    limits = {name: (min(x[name] for x in warmup), max(x[name] for x in warmup)) for name in warmup[0]}
    bare = HalfSpaceTrees(n_trees=10, height=6, window_size=50, limits=limits, seed=9)
    detector = AnomalyDetector(AnomalySettings(**SMALL, seed=9, max_outside_widths=None))
    for features in warmup:
        bare.learn_one(features)
        detector.observe(features)
    for _ in range(300):
        features = reading(rng)
        said, score = detector.observe(features), bare.score_one(features)
        assert said.score == score
        assert said.anomalous == (score >= 0.96)
        if score < 0.96:
            bare.learn_one(features)


def test_one_seed_gives_one_answer_whatever_the_order_of_the_features() -> None:
    rng = random.Random(8)
    readings = [reading(rng, crash=number > 400) for number in range(450)]
    one, other = AnomalyDetector(AnomalySettings(**SMALL)), AnomalyDetector(AnomalySettings(**SMALL))
    unlike = AnomalyDetector(AnomalySettings(**SMALL, seed=2))
    said = [one.observe(x) for x in readings]
    assert said == [other.observe(dict(reversed(x.items()))) for x in readings]
    assert said != [unlike.observe(x) for x in readings]


# ---- what cannot be judged


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300, True, "1", None])
def test_a_bad_number_is_a_fault_and_is_never_learned(bad: Any) -> None:
    one, other = warmed(random.Random(5)), warmed(random.Random(5))
    said = [one.observe({"return_bps": 0.0, "range_bps": bad, "log_volume": 14.0}) for _ in range(60)]
    assert all(x.fault and x.anomalous and x.score is None for x in said)
    assert "range_bps" in said[0].sentence
    assert [x.confirmed for x in said[:4]] == [False, False, True, True]
    rng = random.Random(6)
    later = [reading(rng) for _ in range(60)]
    assert [one.observe(x).score for x in later] == [other.observe(x).score for x in later]


def test_a_bad_number_in_the_warm_up_is_not_taken_for_usual() -> None:
    rng = random.Random(5)
    detector = AnomalyDetector(AnomalySettings(**SMALL))
    for _ in range(99):
        detector.observe(reading(rng))
    said = detector.observe(reading(rng) | {"range_bps": math.nan})
    assert said.fault
    assert said.warming_up
    assert detector.observe(reading(rng)).sentence == "warming up: 100 of 100 readings"
    assert not detector.observe(reading(rng)).warming_up


@pytest.mark.parametrize(
    "features",
    [{}, None, [1.0], {"return_bps": 1.0}, {"": 1.0}, {1: 1.0}, {f"f{number}": 1.0 for number in range(65)}],
)
def test_other_features_are_a_fault(features: Any) -> None:
    said = warmed(random.Random(5)).observe(features)
    assert said.fault
    assert said.anomalous


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.floats() | st.none() | st.integers(), max_size=3))
def test_no_reading_raises_and_scores_stay_between_0_and_1(features: Any) -> None:
    said = HYPOTHESIS.observe(features)
    assert said.sentence
    assert said.fault == (said.score is None)
    assert said.score is None or 0 <= said.score <= 1


HYPOTHESIS = AnomalyDetector(AnomalySettings(n_trees=3, height=3, threshold=0.9, window_observations=10,
                                             warmup_observations=10))  # fmt: skip
for _number in range(10):
    HYPOTHESIS.observe({"a": _number, "b": 0.0, "c": 1e15 if _number else -1e15})


# ---- settings


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"threshold": 0.993}, "largest score"),
        ({"height": 3}, "largest score"),
        ({"warmup_observations": 249}, "at least window_observations"),
        ({"max_symbols": 1_000}, "nodes of trees"),
        ({"n_trees": 1, "max_symbols": 5_000}, "times max_symbols"),
        ({"action": "explode"}, "action"),
        ({"threshold": math.nan}, "threshold"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_settings_that_do_not_fit_together_are_a_sentence(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        AnomalySettings(**changes)


def test_every_setting_says_what_it_is_and_the_default_only_advises() -> None:
    assert AnomalySettings().action == "advise"
    assert all(field.description for field in AnomalySettings.model_fields.values())


def test_the_largest_score_is_as_the_settings_say() -> None:
    trees = HalfSpaceTrees(n_trees=20, height=4, window_size=50, limits={"a": (0.0, 1.0)}, seed=1)
    for _ in range(50):
        trees.learn_one({"a": 0.5})
    largest = max(trees.score_one({"a": number / 50}) for number in range(-100, 150))
    assert largest <= 1 - 1 / 31
    with pytest.raises(ValidationError, match=r"0\.9677"):
        AnomalySettings(height=4, threshold=0.97)


# ---- many symbols, threads, memory


def test_thousands_of_symbols_and_no_more_than_were_allowed() -> None:
    count = 2_000
    small = AnomalySettings(n_trees=1, height=3, threshold=0.9, window_observations=10, warmup_observations=10,
                            max_symbols=count)  # fmt: skip
    monitor = AnomalyMonitor(small)
    for step in range(12):
        for number in range(count):
            said = monitor.observe(f"S{number}", {"a": float(number + step)})
            assert said.warming_up == (step < 10)
    for _ in range(3):
        said = monitor.observe("one too many", {"a": 1.0})
        assert said.fault
        assert said.confirmed
        assert "at most 2000" in said.sentence
    assert monitor.observe("", {"a": 1.0}).fault
    assert len(monitor.symbols()) == count
    monitor.forget("S0")
    assert not monitor.observe("one too many", {"a": 1.0}).fault
    monitor.relearn("S1")
    assert monitor.observe("S1", {"other": 1.0}).warming_up


def test_memory_is_bounded() -> None:
    """The readings of the warm-up go when it ends; afterwards nothing grows."""
    rng = random.Random(5)
    detector = warmed(rng)
    nodes = [sum(1 for _ in tree.iter_dfs()) for tree in detector._trees.trees]
    assert nodes == [2**7 - 1] * 10
    for _ in range(500):
        detector.observe(reading(rng, crash=rng.random() < 0.5))
    assert detector._warmup == []
    assert [sum(1 for _ in tree.iter_dfs()) for tree in detector._trees.trees] == nodes


def test_readings_from_many_threads_are_judged_one_by_one() -> None:
    """Each thread sends the same reading: whatever the order, the counts of the trees are those of one thread."""
    detector, alone = warmed(random.Random(5), threshold=0.99), warmed(random.Random(5), threshold=0.99)
    steady = {"return_bps": 0.0, "range_bps": 5.0, "log_volume": 14.0}
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda: [detector.observe(steady) for _ in range(205)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch_s)
    for _ in range(820):
        alone.observe(steady)
    masses = [[(node.l_mass, node.r_mass) for node in tree.iter_dfs()] for tree in detector._trees.trees]
    assert masses == [[(node.l_mass, node.r_mass) for node in tree.iter_dfs()] for tree in alone._trees.trees]


# ---- the extra


def test_without_river_a_sentence_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules['river'] = None\n"
        "from killswitch.risk import AnomalyDetector, AnomalyMonitor, AnomalySettings, AnomalyUnavailable\n"
        "for door in (AnomalyDetector, AnomalyMonitor):\n"
        "    try:\n"
        "        door(AnomalySettings())\n"
        "    except AnomalyUnavailable as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout.count("pip install 'killswitch-cluster[anomaly]'") == 2
    assert issubclass(AnomalyUnavailable, ImportError)
