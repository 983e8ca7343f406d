"""How much of gold the frozen extractor found: the cap on everything that comes after it.

Trigger and argument F1 per split, whether confidences hold (`reliability.py`), and roster recall: the share of gold
candidates that some roster candidate stands for, of the relevant ones among them, and of the relevant ones that also
have any extracted step to be certified by.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import tables
from pipeline.metrics import rounded
from pipeline.params import Params
from pipeline.tables import Reader
from stages.audit.reliability import reliability
from stages.extract.official import casie, maven_ere, rams
from stages.extract.scores import Decision, Score, decide, score_extraction

FOUND = ("events", "mentions", "arguments")
TUNE_WINDOWS = 500
"""Thresholds are chosen on at most so many tune windows, the first by id."""

RECALLS = ("found", "relevant_found", "relevant_with_steps")


def roster_recall(settings: Sequence[str], root: str | Path = "data") -> dict[str, Any]:
    """Roster recall: setting -> split -> {found, relevant_found, relevant_with_steps: {value, n}}.

    Counted over the kept windows; a gold candidate is relevant when a kept instance grades it above 0.
    """
    windows, entities = Reader("roster/windows", root), Reader("ingest/roster", root)
    reference = {name: Reader(f"reference/audit/{name}", root) for name in ("instances", "grades", "mapping")}
    steps = {setting: Reader(f"trajectories/{setting}/steps", root) for setting in settings}
    counts: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    for shard in tables.shards("roster/windows", root):
        kept = windows.frame(shard).filter("kept").select("window_id", "split")
        gold = entities.frame(shard).select("window_id", "entity_id").unique(maintain_order=True)
        instances = reference["instances"].frame(shard).filter("kept").select("window_id", "intent_id")
        relevant = (
            reference["grades"].frame(shard).filter(pl.col("grade") > 0)
            .join(instances, on=["window_id", "intent_id"], how="semi")
            .select("entity_id", relevant=pl.lit(True)).unique()
        )  # fmt: skip
        gold = gold.join(kept, on="window_id", how="inner").join(relevant, on="entity_id", how="left")
        mapping = reference["mapping"].frame(shard)
        for setting, reader in steps.items():
            acting = reader.frame(shard).select("window_id", "candidate_id", steps=pl.lit(True)).unique()
            mapped = (
                mapping.filter(pl.col("setting") == setting)
                .join(acting, on=["window_id", "candidate_id"], how="left")
                .select("entity_id", "steps", found=pl.lit(True))
            )
            joined = gold.join(mapped, on="entity_id", how="left").with_columns(
                pl.col("relevant", "found", "steps").fill_null(value=False)
            )
            for split, is_relevant, found, acts, n in (
                joined.group_by("split", "relevant", "found", "steps").len().sort("split", "relevant", "found", "steps")
            ).iter_rows():
                _count(counts, (setting, split, "found"), n, found)
                if is_relevant:
                    _count(counts, (setting, split, "relevant_found"), n, found)
                    _count(counts, (setting, split, "relevant_with_steps"), n, acts)
    out: dict[str, Any] = {}
    for setting in settings:
        for split in tables.SPLITS:
            for name in RECALLS:
                hit, n = counts[setting, split, name]
                figure = {"value": rounded(hit / n if n else None), "n": n}
                out.setdefault(setting, {}).setdefault(split, {})[name] = figure
    return out


def extraction_scores(root: str | Path = "data") -> dict[str, Any]:
    """Extraction scores: kind -> split -> {precision, recall, f1, found, gold}, and the thresholds they are taken at.

    Hypotheses count from the confidence that does best on the tune split (0.5 where it has no gold); counts are added
    up shard by shard.
    """
    found = {name: Reader(f"extract/{name}", root) for name in FOUND}
    sentences = Reader("ingest/sentences", root)
    decision = _decision(found, sentences, root)
    totals: dict[str, dict[str, list[int]]] = {}
    for split in tables.SPLITS:
        gold = _gold(split, root)
        for shard in tables.shards("roster/windows", root):
            truth = {name: reader.frame(shard) for name, reader in gold.items()}
            if truth["labelled"].is_empty():
                continue
            scored = score_extraction(
                truth, {n: r.frame(shard) for n, r in found.items()}, sentences.frame(shard), decision
            )
            for kind, score in scored.items():
                counts = totals.setdefault(kind, {}).setdefault(split, [0, 0, 0, 0])
                for i, n in enumerate((score.found, score.right_found, score.gold, score.right_gold)):
                    counts[i] += n
    return {
        "thresholds": {"event": decision.event, "argument": decision.argument},
        "scores": {
            kind: {split: Score(*counts).as_dict() for split, counts in splits.items()}
            for kind, splits in sorted(totals.items())
        },
    }


def _decision(found: dict[str, Reader], sentences: Reader, root: str | Path) -> Decision:
    gold = _gold("tune", root)
    windows = gold["labelled"].frame()["window_id"].unique().sort()[:TUNE_WINDOWS]
    if windows.is_empty():
        return Decision(0.5, 0.5)
    span = (str(windows[0]), str(windows[-1]))

    def frames(readers: dict[str, Reader]) -> dict[str, pl.DataFrame]:
        return {n: r.frame(span).filter(pl.col("window_id").is_in(windows.implode())) for n, r in readers.items()}

    return decide(frames(gold), frames(found), sentences.frame(span))


def _gold(split: str, root: str | Path) -> dict[str, Reader]:
    return {name: Reader(f"ingest/gold/{split}/{name}", root) for name in (*FOUND, "labelled")}


def official_scores(params: Params, decision: Decision, root: str | Path = "data") -> dict[str, Any]:
    """Figures as the corpus' own scorer counts them (docs/extraction_scores.md).

    Relations are counted as MAVEN-ERE counts them for every corpus; those whose gold is in its release alone (time and
    causality over its TIMEX spans) for that corpus only.
    """
    source, path = params.ingest.source, params.ingest.path
    out = {"relations": maven_ere.split_scores(path if source == "maven_ere" else None, root=root)}
    if source == "rams":
        out["rams"] = rams.split_scores(path, decision, root=root)
    if source == "casie":
        out["casie"] = casie.split_scores(decision, root=root)
    return out


def scores(params: Params, root: str | Path = "data") -> dict[str, Any]:
    """What goes into extraction.json."""
    found = extraction_scores(root)
    decision = Decision(found["thresholds"]["event"], found["thresholds"]["argument"])
    roster = roster_recall(params.roster.settings, root)
    return {
        **found,
        "reliability": reliability(params.trajectories.buckets, root),
        "official": official_scores(params, decision, root),
        "roster": roster,
    }


def _count(counts: dict[tuple[str, str, str], list[int]], key: tuple[str, str, str], n: int, hit: bool) -> None:
    counts[key][0] += n * hit
    counts[key][1] += n
