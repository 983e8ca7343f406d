"""Graded candidates as training and calibration examples, streamed window by window.

Reads the windows of one split in one roster setting beside `reference/train` or `reference/tune`; nothing else of
`reference`. A hard negative makes a pair only where the base is truly relevant (grade >= 2) and, when the other half is
a real candidate, truly graded higher: negatives are made without labels, and some bases are the extractor's errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import polars as pl

from pipeline.skeletons import Intent
from pipeline.tables import Reader
from pipeline.windows import Step, Window, load_windows, stable_seed
from stages.reward.features import FloatArray, Judge, raw, standardise
from stages.reward.fit import Examples

CHUNK = 64
"""Windows whose grades are held at once."""

ALTERED = ("drop_climax", "swap_steps", "swap_role")
REAL = ("co_participant", "same_type", "same_head")
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Instance:
    """One graded (window, intent).

    Args:
        window_id, intent_id: which.
        k: length of its list.
        phi: (candidates, features) standardised.
        grades: (candidates,) 0 to 3, 0 for a candidate that stands for no gold one.
        pool: grades of all gold candidates, on the roster or not.
        pairs: (pairs, features) φ(better) − φ(worse) of its hard pairs.
        skipped: hard negatives that do not belong to this roster.
    """

    window_id: str
    intent_id: str
    k: int
    phi: FloatArray
    grades: FloatArray
    pool: tuple[int, ...]
    pairs: FloatArray
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """Where instances come from: `part` of reference and the split of that name, in one roster setting."""

    part: str
    setting: str
    intents: Sequence[Intent]
    judge: Judge
    names: Sequence[str]


def instances(source: Source, limit: int, seed: int, negatives: bool) -> Iterator[Instance]:
    """Kept instances of a part in window order, with hard pairs if asked for.

    Args:
        source: which.
        limit: about so many at most; whole windows are left out, drawn by hash.
        seed: of the draw.
        negatives: whether to read `trajectories/negatives`.
    """
    share = min(1.0, limit / max(1, _kept(source.part)))
    names = [f"reference/{source.part}/{table}" for table in ("instances", "grades", "mapping")]
    kept, grades, mapping = (Reader(name) for name in names)
    hard = Reader("trajectories/negatives") if negatives else None
    windows = load_windows(source.setting, [source.part])
    drawn = (w for w in windows if stable_seed(seed, "reward", w.window_id) < share * 2**64)
    while chunk := list(islice(drawn, CHUNK)):
        span = (chunk[0].window_id, chunk[-1].window_id)
        facts = kept.frame(span).filter(pl.col("kept"))
        ks = {(r["window_id"], r["intent_id"]): r["k"] for r in facts.iter_rows(named=True)}
        graded: dict[Key, dict[str, int]] = {}
        for r in grades.frame(span).iter_rows(named=True):
            graded.setdefault((r["window_id"], r["intent_id"]), {})[r["entity_id"]] = r["grade"]
        stands = mapping.frame(span).filter(pl.col("setting") == source.setting)
        entity = {(r["window_id"], r["candidate_id"]): r["entity_id"] for r in stands.iter_rows(named=True)}
        rows: dict[Key, list[dict[str, Any]]] = {}
        for r in hard.frame(span).iter_rows(named=True) if hard is not None else ():
            rows.setdefault((r["window_id"], r["intent_id"]), []).append(r)
        for window in chunk:
            wanted = [i for i in source.intents if (window.window_id, i.intent_id) in ks]
            matrices = raw(window, [i.skeleton for i in wanted], source.judge, source.names)
            for intent, matrix in zip(wanted, matrices, strict=True):
                key = (window.window_id, intent.intent_id)
                pool = graded.get(key, {})
                mine = [pool.get(entity.get((window.window_id, c.candidate_id), ""), 0) for c in window.candidates]
                pairs, skipped = _pairs(source, window, intent, matrix, mine, rows.get(key, []))
                yield Instance(
                    *key, ks[key], standardise(matrix, matrix), np.array(mine, dtype=np.float64),
                    tuple(sorted(pool.values())), pairs, skipped,
                )  # fmt: skip


def _kept(part: str) -> int:
    return sum(int(batch["kept"].sum()) for batch in Reader(f"reference/{part}/instances").batches())


def _pairs(
    source: Source, window: Window, intent: Intent, matrix: FloatArray, grades: Sequence[int],
    negatives: Sequence[dict[str, Any]],
) -> tuple[FloatArray, int]:  # fmt: skip
    """φ(better) − φ(worse) of an instance's hard pairs, and how many negatives do not belong to this roster."""
    index = {c.candidate_id: i for i, c in enumerate(window.candidates)}
    phi = standardise(matrix, matrix)
    differences, skipped = [np.zeros((0, len(source.names)))], 0
    for row in negatives:
        base, other = index.get(row["candidate_id"]), index.get(row["other_id"])
        if row["kind"] not in (*ALTERED, *REAL):
            continue
        altered = None
        if base is not None and row["kind"] in ALTERED:
            altered = alter(window, row["candidate_id"], [tuple(s) for s in json.loads(row["steps"])])
        if base is None or (other is None and altered is None):
            skipped += 1
        elif grades[base] >= 2 and altered is not None:
            one = raw(altered, [intent.skeleton], source.judge, source.names, [row["candidate_id"]])[0]
            differences.append(phi[base] - standardise(one, matrix))
        elif other is not None and grades[base] >= 2 and grades[base] > grades[other]:
            differences.append(phi[[base]] - phi[[other]])
    return np.concatenate(differences), skipped


def alter(window: Window, candidate_id: str, altered: Sequence[tuple[str, str, int]]) -> Window | None:
    """The window with one candidate's trajectory replaced by an altered one.

    Args:
        window: the original.
        candidate_id: whose trajectory was altered.
        altered: (type, role, order) of each step that is left. An altered step keeps event, spans and confidence of
            the step it was made from: the one it equals, else one of its type and role, else one of its type and order.
            Where it stands elsewhere in the order, it is an event of its own.

    Returns:
        The window, or None when some altered step was made from none of the candidate's.
    """
    unused = list(window.trajectories[candidate_id])
    made: dict[int, Step] = {}
    for same in (
        lambda step, a: (step.type, step.role, step.order) == a,
        lambda step, a: (step.type, step.role) == a[:2],
        lambda step, a: (step.type, step.order) == (a[0], a[2]),
    ):
        for i, a in enumerate(altered):
            origin = next((step for step in unused if same(step, a)), None) if i not in made else None
            if origin is not None:
                unused.remove(origin)
                event = origin.event_id if origin.order == a[2] else f"{origin.event_id}, moved to {a[2]}"
                made[i] = replace(origin, event_id=event, role=a[1], order=a[2])
    if len(made) < len(altered):
        return None
    steps = [step for step in window.steps if step.candidate_id != candidate_id]
    steps += [made[i] for i in sorted(made, key=lambda i: altered[i][2])]
    return replace(window, steps=tuple(sorted(steps, key=lambda step: step.candidate_id)))


def gather(found: Sequence[Instance]) -> Examples:
    """Instances with some relevant candidate on their roster, laid end to end for fitting."""
    useful = [instance for instance in found if instance.grades.max(initial=0) > 0]
    number = {key: i for i, key in enumerate(dict.fromkeys(instance.window_id for instance in useful))}
    gains = [2**instance.grades - 1 for instance in useful]
    window = np.array([number[instance.window_id] for instance in useful], dtype=np.int64)
    return Examples(
        rows=np.concatenate([instance.phi for instance in useful]),
        gains=np.concatenate([gain / gain.sum() for gain in gains]),
        instance=np.repeat(np.arange(len(useful)), [len(gain) for gain in gains]),
        window=window,
        pairs=np.concatenate([instance.pairs for instance in useful]),
        pair_window=np.repeat(window, [len(instance.pairs) for instance in useful]),
        windows=len(number),
    )
