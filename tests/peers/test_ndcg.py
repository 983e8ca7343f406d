"""NDCG equals pytrec_eval (given 2^rel - 1 as judgement) and ranx's `ndcg_burges` on random inputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from pipeline import metrics

QUERIES, K = 60, 5


def random_queries() -> list[tuple[list[int], list[int]]]:
    """(grades of the pool, order): the ranking lists `pool[i] for i in order` and may leave candidates out."""
    generator = np.random.default_rng(20)
    out = []
    for _ in range(QUERIES):
        n = int(generator.integers(2, 14))
        pool = generator.integers(0, 4, n)
        pool[0] = 3
        out.append((pool.tolist(), generator.permutation(n)[: int(generator.integers(1, n + 1))].tolist()))
    return out


def as_runs() -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    qrels = {f"q{q}": {f"c{i}": grade for i, grade in enumerate(pool)} for q, (pool, _) in enumerate(random_queries())}
    run = {
        f"q{q}": {f"c{i}": 100.0 - rank for rank, i in enumerate(order)}
        for q, (_, order) in enumerate(random_queries())
    }
    return qrels, run


def ours() -> dict[str, float]:
    values = {}
    for q, (pool, order) in enumerate(random_queries()):
        value = metrics.ndcg([pool[i] for i in order], pool, K)
        assert value is not None
        values[f"q{q}"] = value
    return values


def test_equals_pytrec_eval_on_exponential_judgements() -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    qrels, run = as_runs()
    judged = {q: {c: 2**grade - 1 for c, grade in pool.items()} for q, pool in qrels.items()}
    theirs = pytrec_eval.RelevanceEvaluator(judged, {f"ndcg_cut.{K}"}).evaluate(run)
    for q, value in ours().items():
        assert value == pytest.approx(theirs[q][f"ndcg_cut_{K}"], abs=1e-9)


def test_plain_pytrec_eval_has_linear_gain_and_differs() -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    qrels, run = as_runs()
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {f"ndcg_cut.{K}"}).evaluate(run)
    assert any(abs(value - theirs[q][f"ndcg_cut_{K}"]) > 0.01 for q, value in ours().items())


RANX = """
import json, sys, warnings
warnings.simplefilter("ignore")
import ranx
given = json.load(sys.stdin)
run = ranx.Run(given["run"])
ranx.evaluate(ranx.Qrels(given["qrels"]), run, given["metric"], make_comparable=True)
print(json.dumps({q: float(v) for q, v in run.scores[given["metric"]].items()}))
"""


def test_equals_ranx_ndcg_burges() -> None:
    pytest.importorskip("ranx")
    qrels, run = as_runs()
    # ranx wants judgements above 0; an unjudged document has gain 0 for all of us.
    relevant = {q: {c: grade for c, grade in pool.items() if grade} for q, pool in qrels.items()}
    done = subprocess.run(
        [sys.executable, "-c", RANX],
        input=json.dumps({"qrels": relevant, "run": run, "metric": f"ndcg_burges@{K}"}),
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},  # the same functions, without half a minute of compilation
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)
    for q, value in ours().items():
        assert value == pytest.approx(theirs[q], abs=1e-9)
