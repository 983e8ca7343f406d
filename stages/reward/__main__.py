"""Stage `reward`: an interpretable reward for trajectories, R_θ(τ, S) = θ · φ(τ, S).

φ (`features.py`) says in some fifteen numbers how well a candidate's extracted trajectory fits a skeleton, how
consistent its roles are, how it stands in the event graph, and whether its evidence would convince the verifier. θ is
fitted on the train split's grades (`fit.py`): listwise softmax cross-entropy, pairwise logistic loss on hard pairs, L2.
It is linear so that θ can be read: `data/reward/theta.json` gives each weight with its bootstrap interval and sign.

Deviation from the task definition's list: features are counted over a lattice of hypotheses, so steps count with their
confidence, and certifiability features are added. The tune split is read for the report only: how often the candidate
that θ prefers is truly the better one (`data/reward/calibration.json`).

Reads `data/trajectories`, `data/roster`, the texts, `data/reference/{train,tune}`; writes `models/reward` and
`data/reward`. `reward.from: NAME` takes models/fitted/NAME/reward and fits nothing. Run it with `dvc repro reward`, or

    python -m stages.reward
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files, metrics, tables
from pipeline.certificates import Limits
from pipeline.errors import DataError, ParamError
from pipeline.params import Params
from pipeline.skeletons import MICRO, intents_from_table
from pipeline.stage import run
from stages.reward.examples import Instance, Source, gather, instances
from stages.reward.features import FEATURES, Judge, feature_names
from stages.reward.fit import Examples, Fit, fit
from stages.reward.model import RewardModel

MODEL = Path("models/reward")
REPORT = Path("data/reward")
FITTED = Path("models/fitted")
BINS = 10
Rows = list[dict[str, Any]]


def main(params: Params) -> None:
    """Fit or adopt the model, then write its report."""
    if params.reward.from_:
        adopt(params.reward.from_)
    else:
        fit_model(params)
    facts = RewardModel.load(MODEL).facts
    files.write_json(REPORT / "theta.json", facts["theta"])
    files.write_json(REPORT / "calibration.json", facts["calibration"])


def adopt(name: str) -> None:
    """Publish a model that was fitted before, unchanged.

    Raises:
        ParamError: there is none of that name.
    """
    kept = FITTED / name / "reward"
    if not kept.is_dir():
        raise ParamError("no reward model is kept under this name", file=kept, field="reward.from")
    RewardModel.load(kept)
    with files.publish_directory(MODEL) as folder:
        for file in ("model.safetensors", "config.json", "README.md"):
            shutil.copyfile(kept / file, folder / file)


def fit_model(params: Params) -> None:
    """Fit θ on train grades, look at it on tune grades, publish.

    Raises:
        DataError: the train split has no graded instance.
    """
    settings = params.reward
    intents = intents_from_table(tables.read("trajectories/skeletons"))
    accept, margin = (round(x * MICRO) for x in (params.verifier.accept, params.verifier.margin))
    judge = Judge(Limits.of(params.verifier), accept, margin)
    names = feature_names(settings.graph)
    train = Source("train", settings.setting, intents, judge, names)
    found = list(instances(train, settings.instances, params.seed, negatives=settings.pair_weight > 0))
    if not any(instance.grades.any() for instance in found):
        raise DataError(
            "no graded train instance to fit the reward model on", file=tables.path("reference/train/grades"),
            field="reward.from", mend="annotate a train split, or name a model kept under models/fitted/",
        )  # fmt: skip
    examples = gather(found)
    print(f"  {_size(found, examples)}", file=sys.stderr)
    estimate = fit(examples, settings.l2, settings.pair_weight, settings.bootstrap, params.seed)
    tune = Source("tune", settings.setting, intents, judge, names)
    checked = [(i, i.phi @ estimate.theta) for i in instances(tune, settings.instances, params.seed, negatives=False)]
    checks = quality(checked)
    facts: dict[str, Any] = {
        "setting": settings.setting, "l2": settings.l2, "pair_weight": settings.pair_weight,
        "bootstrap": settings.bootstrap, "seed": params.seed,
        "intents": {intent.intent_id: intent.sha256 for intent in intents},
        "train": {
            "instances": int(examples.window.size), "windows": examples.windows, "candidates": len(examples.rows),
            "pairs": len(examples.pairs), "loss": round(estimate.loss, metrics.DIGITS),
        },
        "tune": checks, "theta": theta_rows(names, estimate), "calibration": calibration(checked),
    }  # fmt: skip
    model = RewardModel(names, estimate.theta, judge, facts)
    with files.publish_directory(MODEL) as folder:
        model.save(folder)
        files.write_text(folder / "README.md", card(facts))
    shown = ", ".join(f"{key} {value}" for key, value in checks.items())
    print(f"  loss {estimate.loss:.4f}; tune: {shown}", file=sys.stderr)


def _size(found: list[Instance], examples: Examples) -> str:
    skipped = sum(instance.skipped for instance in found)
    beside = f", {skipped} negatives of other rosters left out" if skipped else ""
    return (
        f"{examples.window.size} of {len(found)} instances with a relevant candidate, {examples.windows} windows, "
        f"{len(examples.rows)} candidates, {len(examples.pairs)} hard pairs{beside}"
    )


def theta_rows(names: Iterable[str], estimate: Fit) -> Rows:
    """θ by feature: group, weight, interval, and the sign where the interval excludes 0."""
    groups = {feature.name: feature.group for feature in FEATURES}
    return [
        {
            "feature": name, "group": groups[name], "theta": round(float(theta), metrics.DIGITS),
            "low": round(float(low), metrics.DIGITS), "high": round(float(high), metrics.DIGITS),
            "sign": "+" if low > 0 else "-" if high < 0 else "0",
        }
        for name, theta, low, high in zip(names, estimate.theta, estimate.low, estimate.high, strict=True)
    ]  # fmt: skip


def _contests(checked: Iterable[tuple[Instance, np.ndarray[Any, Any]]]) -> tuple[list[float], list[bool]]:
    """Probability that the preferred one of two differently graded candidates wins, and whether it does."""
    predicted, won = [], []
    for instance, scores in checked:
        for a in range(len(scores)):
            for b in range(a):
                if instance.grades[a] != instance.grades[b]:
                    gap = float(scores[a] - scores[b])
                    predicted.append(1 / (1 + float(np.exp(-abs(gap)))))
                    won.append(bool((gap >= 0) == (instance.grades[a] > instance.grades[b])))
    return predicted, won


def calibration(checked: Iterable[tuple[Instance, np.ndarray[Any, Any]]]) -> Rows:
    """Predicted against observed: how often the candidate of higher score has the higher grade, by predicted chance."""
    predicted, won = _contests(checked)
    edges = np.linspace(0.5, 1.0, BINS + 1)
    bins = np.clip(np.searchsorted(edges, predicted, side="right") - 1, 0, BINS - 1)
    rows = []
    for b in range(BINS):
        inside = [i for i in range(len(predicted)) if bins[i] == b]
        if inside:
            rows.append({
                "bin": f"{edges[b]:.2f}-{edges[b + 1]:.2f}", "n": len(inside),
                "predicted": round(sum(predicted[i] for i in inside) / len(inside), metrics.DIGITS),
                "observed": round(sum(won[i] for i in inside) / len(inside), metrics.DIGITS),
            })  # fmt: skip
    return rows


def quality(checked: list[tuple[Instance, np.ndarray[Any, Any]]]) -> dict[str, float | int | None]:
    """NDCG@K of the model's order, and the share of differently graded pairs that it orders rightly."""
    values = []
    for instance, scores in checked:
        order = np.argsort(-scores, kind="stable")
        value = metrics.ndcg([int(g) for g in instance.grades[order]], instance.pool, instance.k)
        values += [] if value is None else [value]
    _, won = _contests(checked)
    return {
        "instances": len(values),
        "ndcg": round(sum(values) / len(values), metrics.DIGITS) if values else None,
        "pairs": len(won),
        "ordered": round(sum(won) / len(won), metrics.DIGITS) if won else None,
    }


def card(facts: dict[str, Any]) -> str:
    """The model card."""
    train, tune = facts["train"], facts["tune"]
    lines = [
        "# Reward model", "",
        "Linear in standardised features of a candidate's extracted trajectory under a plan skeleton; fitted by "
        "`python -m stages.reward`. Scores compare the candidates of one window under one intent and nothing else.", "",
        f"- train split, roster setting {facts['setting']}, intents {', '.join(sorted(facts['intents']))}",
        f"- fitted on {train['instances']} instances of {train['windows']} windows ({train['candidates']} candidates, "
        f"{train['pairs']} hard pairs); l2 {facts['l2']}, pair weight {facts['pair_weight']}, loss {train['loss']}",
        f"- tune split: NDCG@K {tune['ndcg']} over {tune['instances']} instances; {tune['ordered']} of {tune['pairs']} "
        "differently graded pairs in the right order",
        f"- intervals: 2.5 % and 97.5 % of {facts['bootstrap']} refits, each on windows drawn with replacement", "",
        "| feature | group | theta | low | high | sign |", "|---|---|---:|---:|---:|:-:|",
    ]  # fmt: skip
    lines += [
        f"| {r['feature']} | {r['group']} | {r['theta']:.3f} | {r['low']:.3f} | {r['high']:.3f} | {r['sign']} |"
        for r in facts["theta"]
    ]
    lines += [
        "", "Features are defined in stages/reward/features.py. They are correlated (a filled climax raises several "
        "of them), so one sign says less than its group. Not for another ontology's intents without refitting.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run("reward", main)
