"""The reward model: what its features say, that fitting finds the minimum, and that the stage is reproducible."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import files, tables
from pipeline.certificates import Limits
from pipeline.errors import CertrankError, DataError, ParamError
from pipeline.params import Params
from pipeline.skeletons import Skeleton
from pipeline.windows import Window, local_ids
from stages.reward import __main__ as stage
from stages.reward.examples import Instance, alter, gather
from stages.reward.features import (
    FEATURES,
    FUNCTIONS,
    Case,
    FloatArray,
    Judge,
    Plan,
    cases,
    feature_names,
    plan_order,
    raw,
    standardise,
)
from stages.reward.fit import Examples, fit
from stages.reward.model import RewardModel
from tests import tiny
from tests.builders import PLAN, act, build_window, document, find, random_window, skeleton_of, story

ROOT = Path(__file__).parents[2]
JUDGE = Judge(Limits(), 100_000, 50_000)
RANDOM_PLAN = skeleton_of(
    ("s1", ["t0"], ["r0", "r1"], 0.5), ("s2", ["t1", "t2"], ["r2"], 0.35), ("s3", ["t0"], ["*", "!r0", "!r1"], 0.15)
)


def by_candidate(window: Window, skeleton: Skeleton) -> dict[str, Case]:
    found = cases(window, [skeleton], JUDGE)[0]
    return dict(zip([c.candidate_id for c in window.candidates], found, strict=True))


def value(name: str, case: Case) -> float:
    return FUNCTIONS[name](case)


# ---- features -----------------------------------------------------------------------------------------------------


def test_plan_order_puts_predecessors_first() -> None:
    assert plan_order(PLAN) == (1, 0, 2)


@pytest.mark.parametrize(
    ("name", "ada", "bob", "cay", "dot"),
    [
        ("filled_weight", 0.85, 0.5, 0.5, 0.0),
        ("monotone_score", 0.85, 0.5, 0.4, 0.0),  # Cay: 0.35 + 0.15 - 0.1 for the climax slot that is skipped
        ("missing_required", 0.0, 0.0, 1.0, 1.0),
        ("inversions", 0.0, 0.0, 0.0, 0.0),
        ("allowed_role_share", 1.0, 1.0, 1.0, 0.0),
        ("role_entropy", np.log(2), 0.0, np.log(2), 0.0),
        ("illegal_roles", 0.0, 0.0, 0.0, 0.0),
        ("role_conflict", 0.0, 0.0, 0.0, 0.0),
        ("log_degree", np.log(2), 0.0, np.log(2), 0.0),  # Ada and Cay share the attack; Bob's is unlikely
        ("joined_slots", 0.0, 0.0, 0.0, 0.0),
        ("order_violations", 0.0, 0.0, 0.0, 0.0),
        ("log_mentions", np.log(3), np.log(2), np.log(3), 0.0),
        ("log_steps", np.log(3), np.log(2), np.log(3), 0.0),
        ("filled_confidence", 0.765, 0.2, 0.45, 0.0),
        ("climax_confidence", 0.9, 0.4, 0.0, 0.0),
        ("attached", 1.0, 1.0, 1.0, 0.0),
    ],
)
def test_features_of_the_story(name: str, ada: float, bob: float, cay: float, dot: float) -> None:
    found = by_candidate(story(), PLAN)
    assert [value(name, found[c]) for c in ("Ada", "Bob", "Cay", "Dot")] == pytest.approx([ada, bob, cay, dot])


def test_margin_is_support_beyond_the_best_rival() -> None:
    found = by_candidate(story(), PLAN)
    assert 0.5 < value("attached_margin", found["Bob"]) <= 0.6
    assert value("attached_margin", found["Dot"]) == 0.0


def one_text(*steps: tuple[str, str, str, str, int, float]) -> Window:
    """A window from (candidate, type, role, trigger word, order, confidence); each word stands on a line with names."""
    words = sorted({step[3] for step in steps})
    doc = document("d", "\n".join(f"{word} Ann Bea Cyd." for word in words))
    made = [
        act(c, t, role, find(doc, word), find(doc, c, words.index(word)), order=order, confidence=confidence)
        for c, t, role, word, order, confidence in steps
    ]
    return build_window([doc], ["Ann", "Bea", "Cyd"], made)


def test_order_features_see_a_plan_told_backwards() -> None:
    ann = [("Ann", "attack", "attacker", "hit", 0, 1.0), ("Ann", "buy", "buyer", "got", 1, 1.0)]
    case = by_candidate(one_text(*ann), PLAN)["Ann"]
    assert (value("inversions", case), value("order_violations", case)) == (1.0, 1.0)
    assert value("filled_weight", case) == 0.85
    assert value("monotone_score", case) == 0.5


def test_a_skipped_event_costs_a_gap() -> None:
    ann = [
        ("Ann", "buy", "buyer", "got", 0, 1.0),
        ("Ann", "meet", "guest", "met", 1, 1.0),
        ("Ann", "attack", "attacker", "hit", 2, 1.0),
    ]
    assert value("monotone_score", by_candidate(one_text(*ann), PLAN)["Ann"]) == pytest.approx(0.75)


def test_argument_features_vary_with_the_roles() -> None:
    """Defect 14: with roles that are never recognised, the argument features were the same for everyone."""
    window = one_text(
        ("Ann", "buy", "buyer", "got", 0, 1.0),
        ("Bea", "buy", "seller", "got", 0, 1.0),
        ("Cyd", "buy", "buyer", "got", 0, 0.6),
        ("Cyd", "buy", "seller", "got", 0, 0.2),
    )
    found = by_candidate(window, PLAN)
    for name, expected in {
        "allowed_role_share": [1.0, 0.0, 0.75],
        "illegal_roles": [0.0, 1.0, 0.2],
        "role_conflict": [0.0, 0.0, 0.2],
        "role_entropy": [0.0, 0.0, -0.75 * np.log(0.75) - 0.25 * np.log(0.25)],
    }.items():
        assert [value(name, found[c]) for c in ("Ann", "Bea", "Cyd")] == pytest.approx(expected)
    matrix = raw(window, [PLAN], JUDGE, feature_names())[0]
    arguments = [i for i, f in enumerate(FEATURES) if f.group == "arguments"]
    assert (matrix[:, arguments].std(axis=0) > 0).all()


def test_graph_features_see_shared_company() -> None:
    together = [
        (c, t, r, w, o, 1.0)
        for w, t, r, o in (("got", "buy", "buyer", 0), ("hit", "attack", "attacker", 1))
        for c in ("Ann", "Bea")
    ]
    found = by_candidate(one_text(*together), PLAN)
    assert value("joined_slots", found["Ann"]) == 1.0
    assert value("log_degree", found["Ann"]) == pytest.approx(np.log(2))
    assert value("log_degree", found["Cyd"]) == 0.0


@given(st.integers(0, 400))
@settings(max_examples=30, deadline=None)
def test_features_stay_in_their_ranges(seed: int) -> None:
    for case in cases(random_window(seed), [RANDOM_PLAN], JUDGE)[0]:
        for name in ("filled_weight", "monotone_score", "inversions", "allowed_role_share", "joined_slots",
                     "order_violations", "filled_confidence", "climax_confidence", "attached"):  # fmt: skip
            assert 0 <= value(name, case) <= 1 + 1e-12
        assert value("monotone_score", case) <= value("filled_weight", case)
        assert value("filled_confidence", case) <= value("filled_weight", case) + 1e-12
        assert not case.accepted or case.margin >= JUDGE.margin


@given(st.integers(0, 400), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_features_know_no_local_id_and_no_order_of_the_roster(seed: int, epoch: int) -> None:
    window = random_window(seed)
    fresh = local_ids("C", len(window.candidates), seed, "another", epoch)
    renamed = [replace(c, local_id=i) for c, i in zip(window.candidates, fresh, strict=True)]
    other = replace(window, candidates=tuple(reversed(renamed)))
    mine, theirs = (raw(w, [RANDOM_PLAN], JUDGE, feature_names())[0] for w in (window, other))
    assert mine.tobytes() == np.ascontiguousarray(theirs[::-1]).tobytes()


HASHED = """
import sys
from pipeline.certificates import Limits
from stages.reward.features import Judge, feature_names, raw, standardise
from tests.builders import random_window, skeleton_of
plan = skeleton_of(("s1", ["t0"], ["r0"], 0.5), ("s2", ["t1", "t2"], ["r2"], 0.35), ("s3", ["t0"], ["*", "!r0"], 0.15))
for seed in range(12):
    rows = raw(random_window(seed), [plan], Judge(Limits(), 100_000, 50_000), feature_names())[0]
    sys.stdout.buffer.write(rows.tobytes() + standardise(rows, rows).tobytes())
"""


def test_features_do_not_depend_on_the_hash_seed() -> None:
    """Defect 13: features from Python's `hash()` differ from one process to the next."""
    outputs = [
        subprocess.run(
            [sys.executable, "-c", HASHED], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "4711")
    ]  # fmt: skip
    assert outputs[0] == outputs[1] != b""


def test_an_empty_roster_is_standardised_without_a_warning() -> None:
    """Warnings are errors here; a corpus without annotation has empty closed rosters."""
    assert standardise(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0, 3)


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=1, max_size=8))
def test_standardised_columns_have_mean_0_and_deviation_1_or_are_0(values: list[list[float]]) -> None:
    rows = np.array(values)
    scaled = standardise(rows, rows)
    for column in range(3):
        constant = rows[:, column].std() <= 1e-9
        assert scaled[:, column].mean() == pytest.approx(0, abs=1e-5)
        assert scaled[:, column].std() == pytest.approx(0 if constant else 1, abs=1e-5)


# ---- hard pairs ---------------------------------------------------------------------------------------------------


def plain(window: Window, candidate_id: str) -> list[tuple[str, str, int]]:
    return [(s.type, s.role, s.order) for s in window.trajectories[candidate_id]]


@pytest.mark.parametrize(
    ("altered", "lower"),
    [
        ([("buy", "buyer", 0)], "filled_weight"),  # climax dropped
        ([("attack", "attacker", 0), ("buy", "buyer", 2)], "monotone_score"),  # steps swapped
        ([("buy", "buyer", 0), ("attack", "target", 2)], "climax_confidence"),  # role swapped
    ],
)
def test_altered_trajectories_look_worse(altered: list[tuple[str, str, int]], lower: str) -> None:
    window = story()
    changed = alter(window, "Ada", altered)
    assert changed is not None
    assert plain(changed, "Ada") == altered
    assert [plain(changed, c) for c in ("Bob", "Cay", "Dot")] == [plain(window, c) for c in ("Bob", "Cay", "Dot")]
    column = feature_names().index(lower)
    before, after = (raw(w, [PLAN], JUDGE, feature_names(), ["Ada"])[0] for w in (window, changed))
    assert after[0, column] < before[0, column]


def test_a_trajectory_of_another_roster_is_not_forced_upon_a_candidate() -> None:
    assert alter(story(), "Bob", [("buy", "buyer", 0), ("attack", "attacker", 3)]) is None


# ---- fitting ------------------------------------------------------------------------------------------------------

THETA = np.array([1.5, -0.8, 0.0])


def planted(lists: int = 400, n: int = 6, seed: int = 0) -> Examples:
    """Lists whose best candidate is drawn from the softmax of THETA·φ; one window holds two lists."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(lists, n, 3))
    best = (rows @ THETA + rng.gumbel(size=(lists, n))).argmax(axis=1)
    gains = np.zeros((lists, n))
    gains[np.arange(lists), best] = 1.0
    window = np.arange(lists) // 2
    pairs = np.zeros((0, 3))
    return Examples(
        rows.reshape(-1, 3), gains.reshape(-1), np.repeat(np.arange(lists), n), window, pairs, window[:0], lists // 2
    )


def gradient(examples: Examples, theta: FloatArray, l2: float) -> FloatArray:
    """Of J without pairs, by hand."""
    total = l2 * theta
    for i in range(len(examples.window)):
        inside = examples.instance == i
        rows = examples.rows[inside]
        chances = np.exp(rows @ theta)
        total = total + rows.T @ (chances / chances.sum() - examples.gains[inside])
    result: FloatArray = total / len(examples.window)
    return result


def test_fitting_recovers_planted_weights_at_a_stationary_point() -> None:
    examples = planted()
    found = fit(examples, l2=1.0, pair_weight=0.1, draws=60, seed=3)
    assert found.theta == pytest.approx(THETA, abs=0.25)
    assert np.abs(gradient(examples, found.theta, 1.0)).max() < 1e-8
    assert ((found.low < THETA) & (found.high > THETA)).all()
    assert found.low[0] > 0 > found.high[1]
    assert found.low[2] < 0 < found.high[2]


def test_fitting_twice_gives_the_same_bytes() -> None:
    first, second = (fit(planted(80), 1.0, 0.1, 5, seed=3) for _ in range(2))
    for a, b in zip((first.theta, first.low, first.high), (second.theta, second.low, second.high), strict=True):
        assert a.tobytes() == b.tobytes()


def test_l2_shrinks_and_pairs_pull() -> None:
    examples = planted(80)
    free, held = (fit(examples, l2, 0.1, 1, seed=0).theta for l2 in (0.01, 1000.0))
    assert np.linalg.norm(held) < 0.2 * np.linalg.norm(free)
    pulled = replace(examples, pairs=np.array([[0.0, 0.0, 2.0]]), pair_window=np.array([0]))
    assert fit(pulled, 1.0, 5.0, 1, seed=0).theta[2] > fit(examples, 1.0, 5.0, 1, seed=0).theta[2] + 0.3
    assert fit(pulled, 1.0, 0.0, 1, seed=0).theta == pytest.approx(fit(examples, 1.0, 0.0, 1, seed=0).theta)


def test_gathered_gains_are_normalised_and_lists_without_gain_are_left_out() -> None:
    def instance(window_id: str, grades: list[int], pairs: int) -> Instance:
        phi = np.arange(len(grades) * 2, dtype=float).reshape(-1, 2)
        return Instance(window_id, "i", 2, phi, np.array(grades, dtype=float), tuple(grades), np.ones((pairs, 2)))

    found = gather([instance("w1", [3, 0, 1], 2), instance("w2", [0, 0], 3), instance("w3", [2, 0], 1)])
    assert found.gains == pytest.approx([7 / 8, 0, 1 / 8, 1, 0])
    assert found.instance.tolist() == [0, 0, 0, 1, 1]
    assert (found.window.tolist(), found.windows) == ([0, 1], 2)
    assert found.pair_window.tolist() == [0, 0, 1]


# ---- the model on disk --------------------------------------------------------------------------------------------


def model(**changes: float) -> RewardModel:
    theta = np.array([changes.get(name, 0.0) for name in feature_names()])
    return RewardModel(feature_names(), theta, JUDGE, {"theta": [], "calibration": []})


def test_model_round_trips_and_refuses_what_was_changed(tmp_path: Path) -> None:
    made = model(filled_confidence=1.0, log_degree=-0.25)
    with files.publish_directory(tmp_path / "reward") as folder:
        made.save(folder)
    loaded = RewardModel.load(tmp_path / "reward")
    window = story()
    assert loaded.scores(window, PLAN).tobytes() == made.scores(window, PLAN).tobytes()
    assert [s.tobytes() for s in loaded.scores_of(window, [RANDOM_PLAN, PLAN])][1] == made.scores(
        window, PLAN
    ).tobytes()
    assert loaded.judge == JUDGE
    config = tmp_path / "reward" / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("log_degree", "log_degrees"), encoding="utf-8")
    with pytest.raises(DataError, match="changed after it was published"):
        RewardModel.load(tmp_path / "reward")


def test_model_with_an_unknown_feature_is_refused(tmp_path: Path) -> None:
    with files.publish_directory(tmp_path / "reward") as folder:
        replace(model(), names=("filled_wait", *feature_names()[1:])).save(folder)
    with pytest.raises(DataError, match="unknown feature 'filled_wait'"):
        RewardModel.load(tmp_path / "reward")


def test_scores_rank_the_story_and_standardise_within_the_window() -> None:
    scores = model(filled_confidence=1.0).scores(story(), PLAN)
    assert scores.argsort()[::-1].tolist() == [0, 2, 1, 3]
    assert scores.mean() == pytest.approx(0)
    assert scores.std() == pytest.approx(1)


# ---- the stage ----------------------------------------------------------------------------------------------------


def small(**changes: object) -> Params:
    raw_params = tiny.params().model_dump(by_alias=True)
    raw_params["reward"] |= {"bootstrap": 5, **changes}
    return Params.model_validate(raw_params)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.write(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def published(root: Path) -> dict[str, bytes]:
    folders = (root / "models/reward", root / "data/reward")
    return {p.name: p.read_bytes() for folder in folders for p in sorted(folder.iterdir())}


def test_stage_fits_reports_and_repeats_itself(workspace: Path) -> None:
    stage.main(small())
    first = published(workspace)
    assert sorted(first) == ["README.md", "_COMPLETE", "calibration.json", "config.json", "model.safetensors",
                             "theta.json"]  # fmt: skip
    theta = files.read_json(workspace / "data/reward/theta.json")
    assert [row["feature"] for row in theta] == list(feature_names())
    assert all(row["low"] <= row["high"] for row in theta)
    loaded = RewardModel.load("models/reward")
    assert loaded.theta[feature_names().index("climax_confidence")] > 0
    assert loaded.facts["train"]["instances"] == 1
    assert loaded.facts["train"]["pairs"] == 1
    stage.main(small())
    assert published(workspace) == first


def test_stage_without_graph_features(workspace: Path) -> None:
    stage.main(small(graph=False))
    assert RewardModel.load("models/reward").names == feature_names(graph=False)


def test_stage_adopts_a_kept_model_and_fits_nothing(workspace: Path) -> None:
    stage.main(small())
    before = published(workspace)
    (workspace / "models/fitted/mine").mkdir(parents=True)
    (workspace / "models/reward").rename(workspace / "models/fitted/mine/reward")
    for name in ("instances", "grades", "mapping"):
        tables.path(f"reference/train/{name}", workspace / "data").unlink()
    stage.main(small(**{"from": "mine"}))
    assert published(workspace) == before


def test_stage_says_which_kept_model_is_missing(workspace: Path) -> None:
    with pytest.raises(ParamError, match=r"models/fitted/mine/reward: reward.from: no reward model is kept"):
        stage.main(small(**{"from": "mine"}))


def test_stage_without_train_grades_is_one_clear_error(workspace: Path) -> None:
    for name in ("instances", "grades", "mapping"):
        tables.write(f"reference/train/{name}", tables.table(f"reference/train/{name}").empty(), workspace / "data")
    with pytest.raises(CertrankError) as caught:
        stage.main(small())
    assert "no graded train instance" in caught.value.one_line()
    assert "\n" not in caught.value.one_line()
    assert not (workspace / "models/reward").exists()


def test_calibration_counts_each_contest_once_and_separates_skill_from_luck() -> None:
    def instance(grades: list[int]) -> Instance:
        return Instance(
            "w", "i", 2, np.zeros((len(grades), 1)), np.array(grades, float), tuple(grades), np.zeros((0, 1))
        )

    checked = [(instance([3, 0, 0]), np.array([2.0, 0.0, 1.0])), (instance([0, 2]), np.array([0.1, 0.0]))]
    rows = stage.calibration(checked)
    assert sum(row["n"] for row in rows) == 3
    assert rows[0]["bin"] == "0.50-0.55"
    assert (rows[0]["n"], rows[0]["observed"]) == (1, 0.0)
    assert all(row["observed"] == 1.0 for row in rows[1:])
    assert stage.quality(checked)["ordered"] == pytest.approx(2 / 3, abs=1e-6)
    assert stage.quality([]) == {"instances": 0, "ndcg": None, "pairs": 0, "ordered": None}


def test_plans_are_prepared_once_per_skeleton() -> None:
    plan = Plan(PLAN)
    assert plan.fits("attack", "attacker") == (0,)
    assert plan.fits("attack", "target") == (2,)
    assert plan.fits("meet", "guest") == ()
    assert plan.names("attack")
    assert not plan.names("meet")
