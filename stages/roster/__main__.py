"""Rosters: the candidates of every window, their mentions, and what the frozen extractor says of them.

    python -m stages.roster

The closed roster is an input (data/ingest/roster.parquet: mention spans, no events, no roles); the predicted one is
whatever the extractor found; the hybrid one is both. In every setting the role hypotheses come from the extractor
alone, scored for that setting's mentions. No gold directory is read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from pipeline import files, stage, tables
from pipeline.params import Params
from pipeline.spans import Span
from pipeline.windows import local_ids
from stages.extract.folds import Extractor
from stages.extract.models import load_extractor
from stages.extract.portions import portions
from stages.roster.candidates import Cluster, Roster, build, merge
from stages.roster.takes_part import chains, own_events

Frames = dict[str, pl.DataFrame]
INPUTS = (
    "ingest/documents", "ingest/sentences", "ingest/roster", "extract/mentions", "extract/events", "extract/arguments",
)  # fmt: skip
OUTPUTS = ("candidates", "mentions", "arguments")


@dataclass(frozen=True, slots=True)
class Shard:
    """The rows of one shard: by table name, then by window."""

    whole: Frames
    by_window: dict[str, dict[str, pl.DataFrame]]

    def rows(self, name: str, window_id: str) -> pl.DataFrame:
        return self.by_window[name].get(window_id, self.whole[name].clear())


def main(params: Params) -> None:
    """Build the rosters of every window, shard by shard."""
    extractor = load_extractor(files.check_complete("models/extract"))
    readers = {name: tables.Reader(name) for name in INPUTS}
    kind = candidate_kind(params, readers["ingest/roster"], extractor)
    shards = portions()
    names = ["roster/windows"]
    names += [f"roster/{setting}/{output}" for setting in params.roster.settings for output in OUTPUTS]
    with tables.writers(names) as writers:
        for bounds in stage.progress(shards, "rosters", len(shards)):
            shard = read_shard(readers, bounds)
            rosters = build_rosters(shard, kind, params)
            writers["roster/windows"].append(windows_frame(shard, rosters, params))
            analysis = extractor.analyse(shard.whole["ingest/documents"], shard.whole["ingest/sentences"])
            for setting in params.roster.settings:
                frames = setting_frames(shard, rosters[setting], setting, kind, extractor, analysis, params)
                for output, frame in frames.items():
                    writers[f"roster/{setting}/{output}"].append(frame)


def candidate_kind(params: Params, roster: tables.Reader, extractor: Extractor) -> str:
    """`entity` or `event_chain`: the parameter, else what the closed roster holds, else what the extractor can do."""
    if params.roster.candidate_kind != "auto":
        return params.roster.candidate_kind
    for batch in roster.batches():
        return str(batch["kind"][0])
    return extractor.candidate_kind


def read_shard(readers: Mapping[str, tables.Reader], bounds: tuple[str, str]) -> Shard:
    """Read the rows of a range of windows from every input."""
    whole = {name: reader.frame(bounds) for name, reader in readers.items()}
    by_window = {
        name: {str(key[0]): rows for key, rows in frame.partition_by("window_id", as_dict=True).items()}
        for name, frame in whole.items()
    }
    return Shard(whole, by_window)


def build_rosters(shard: Shard, kind: str, params: Params) -> dict[str, list[Roster]]:
    """Rosters by setting, one per window in window order."""
    out: dict[str, list[Roster]] = {setting: [] for setting in tables.SETTINGS}
    for window_id, documents in shard.by_window["ingest/documents"].items():
        position = dict(documents.select("doc_id", "position").iter_rows())
        closed = clusters(shard.rows("ingest/roster", window_id))
        if kind == "entity":
            predicted = clusters(shard.rows("extract/mentions", window_id))
        else:
            predicted = [tuple(chain) for chain in chains(shard.rows("extract/events", window_id))]
        hybrid = merge(closed, predicted, params.roster.merge_iou)
        for setting, found in (("closed", closed), ("predicted", predicted), ("hybrid", hybrid)):
            out[setting].append(build(window_id, found, position))
    return out


def clusters(mentions: pl.DataFrame) -> list[Cluster]:
    """Mention spans by `entity_id`, clusters in order of their ids."""
    out: dict[str, list[Span]] = {}
    for entity, doc_id, start, end in mentions.select("entity_id", "doc_id", "start", "end").iter_rows():
        out.setdefault(entity, []).append(Span(doc_id, start, end))
    return [tuple(out[key]) for key in sorted(out)]


def windows_frame(shard: Shard, rosters: Mapping[str, Sequence[Roster]], params: Params) -> pl.DataFrame:
    """Rows of roster/windows; a window without gold candidates is sized by its predicted roster."""
    sizes = pl.DataFrame(
        {
            "window_id": [roster.window_id for roster in rosters["closed"]],
            **{f"n_{setting}": [len(r.clusters) for r in rosters[setting]] for setting in tables.SETTINGS},
        },
        schema={"window_id": pl.String, **{f"n_{setting}": pl.Int64 for setting in tables.SETTINGS}},
    )
    least = params.roster.min_candidates
    return (
        shard.whole["ingest/documents"]
        .group_by("window_id", maintain_order=True)
        .agg(
            pl.col("split").first(),
            pl.len().cast(pl.Int64).alias("documents"),
            pl.col("text").str.len_chars().sum().cast(pl.Int64).alias("characters"),
        )
        .join(sizes, on="window_id", how="left", maintain_order="left")
        .with_columns(n=pl.when(pl.col("n_closed") > 0).then("n_closed").otherwise("n_predicted"))
        .with_columns(k=pl.min_horizontal(pl.lit(params.roster.max_k), pl.col("n") // 2), kept=pl.col("n") >= least)
        .with_columns(dropped=pl.when(~pl.col("kept")).then(pl.lit(f"fewer than {least} candidates")))
    )


def setting_frames(
    shard: Shard, rosters: Sequence[Roster], setting: str, kind: str, extractor: Extractor, analysis: Any,
    params: Params,
) -> Frames:  # fmt: skip
    """Rows of roster/<setting>/{candidates, mentions, arguments} for one shard."""
    texts = dict(shard.whole["ingest/documents"].select("doc_id", "text").iter_rows())
    candidates: list[dict[str, object]] = []
    mentions: list[dict[str, object]] = []
    for roster in rosters:
        ids = local_ids("C", len(roster.clusters), params.seed, roster.window_id)
        for local_id, (candidate_id, spans) in zip(ids, roster.clusters.items(), strict=True):
            surfaces = [texts[s.doc_id][s.start : s.end] for s in spans]
            candidates.append(
                {"window_id": roster.window_id, "candidate_id": candidate_id, "local_id": local_id,
                 "name": max(surfaces, key=len), "mentions": len(spans)}
            )  # fmt: skip
            mentions += [
                {"window_id": roster.window_id, "candidate_id": candidate_id, "mention_id": str(s), "doc_id": s.doc_id,
                 "start": s.start, "end": s.end, "surface": surface, "confidence": 1.0}
                for s, surface in zip(spans, surfaces, strict=True)
            ]  # fmt: skip
    found = tables.table(f"roster/{setting}/mentions").frame(mentions)
    if kind == "event_chain":
        arguments = [
            own_events(r.window_id, shard.rows("extract/events", r.window_id), sum(r.clusters.values(), ()),
                       params.roster.merge_iou)
            for r in rosters
        ]  # fmt: skip
        took_part = pl.concat([tables.table("extract/arguments").empty(), *arguments])
    elif setting == "predicted":
        took_part = shard.whole["extract/arguments"]
    else:
        took_part = extractor.arguments(analysis, shard.whole["extract/events"], found)
    if setting == "predicted" and kind == "entity" and not found.is_empty():
        # Not in the hybrid setting: a mention that the extractor would not have kept could only be a given one.
        found = found.with_columns(confidence=pl.Series(extractor.score_mentions(analysis, found), dtype=pl.Float64))
    return {
        "candidates": tables.table(f"roster/{setting}/candidates").frame(candidates),
        "mentions": found,
        "arguments": took_part.select(tables.table(f"roster/{setting}/arguments").schema.names()),
    }


if __name__ == "__main__":
    stage.run("roster", main)
