"""A tiny, consistent data directory written by hand, for tests of what reads many tables at once.

Two windows of one document each (one train, one test), four candidates, three events, one intent, every roster
setting, systems rm_attach and oracle. The texts hold an emoji and a combining accent, so offsets are code points.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from pipeline import tables
from pipeline.params import Params, load_params
from pipeline.spans import sha256_text
from pipeline.windows import local_ids

ROOT = Path(__file__).parent.parent
TEXT = "\N{SLIGHTLY SMILING FACE} Ann bought a gun. Bob met Cide\N{COMBINING ACUTE ACCENT}. Ann shot Dan at noon."
SENTENCES = ("\N{SLIGHTLY SMILING FACE} Ann bought a gun.", "Bob met Cide\N{COMBINING ACUTE ACCENT}.",
             "Ann shot Dan at noon.")  # fmt: skip
NAMES = ("Ann", "Bob", "Cide\N{COMBINING ACUTE ACCENT}", "Dan")
EVENTS = (("bought", "Trade.Buy"), ("met", "Contact.Meet"), ("shot", "Attack.Shoot"))
ACTS = (("bought", "Ann", 0, "buyer"), ("met", "Bob", 0, "visitor"), ("met", NAMES[2], 0, "host"),
        ("shot", "Ann", 1, "attacker"), ("shot", "Dan", 0, "victim"))  # fmt: skip
SYSTEMS = ("rm_attach", "oracle")
SPLITS = {"w1": "train", "w2": "test"}

Row = dict[str, Any]


def params() -> Params:
    """The repository's parameters with one system."""
    raw = load_params(ROOT / "params.yaml").model_dump(by_alias=True)
    raw["rank"]["systems"] = ["rm_attach"]
    return Params.model_validate(raw)


def find(surface: str, nth: int = 0) -> tuple[int, int]:
    """The nth occurrence in TEXT as a half-open range."""
    start = -1
    for _ in range(nth + 1):
        start = TEXT.index(surface, start + 1)
    return start, start + len(surface)


def spans(window: str, surface: str, nth: int = 0) -> Row:
    start, end = find(surface, nth)
    return {"window_id": window, "doc_id": f"{window}:doc-1", "start": start, "end": end, "surface": surface}


def write(root: Path) -> None:
    """Write every table below `root`."""
    rows = _rows()
    for name, some in rows.items():
        tables.write(name, tables.table(name).frame(some), root)


def change(root: Path, name: str, change: pl.Expr | list[pl.Expr], where: pl.Expr | None = None) -> None:
    """Rewrite a table with expressions applied to some rows; what a test breaks."""
    frame = tables.read(name, root)
    for expression in change if isinstance(change, list) else [change]:
        column = expression.meta.output_name()
        new = expression if where is None else pl.when(where).then(expression).otherwise(pl.col(column))
        frame = frame.with_columns(new.alias(column))
    tables.write(name, frame, root)


def candidate(window: str, name: str) -> str:
    start, end = find(name)
    return f"{window}:doc-1:{start}-{end}"


def _sentence(start: int) -> int:
    return next(i for i, s in enumerate(SENTENCES) if find(s)[0] <= start < find(s)[1])


def _rows() -> dict[str, list[Row]]:
    out: dict[str, list[Row]] = {name: [] for name in _concrete()}
    for window, split in SPLITS.items():
        doc, text = f"{window}:doc-1", TEXT
        out["ingest/documents"].append({
            "window_id": window, "doc_id": doc, "position": 0, "split": split, "text": text,
            "sha256": sha256_text(text), "title": "A title", "date": "2021-03-04", "url": None,
        })  # fmt: skip
        for i, sentence in enumerate(SENTENCES):
            place = spans(window, sentence)
            del place["surface"]
            out["ingest/sentences"].append({**place, "sentence": i})
            out[f"ingest/gold/{split}/labelled"].append({"window_id": window, "doc_id": doc, "sentence": i})
        _gold(out, window, split)
        _extracted(out, window)
        for setting in tables.SETTINGS:
            _setting(out, window, split, setting)
        out["roster/windows"].append({
            "window_id": window, "split": split, "documents": 1, "characters": len(text), "n_closed": 4,
            "n_predicted": 4, "n_hybrid": 4, "n": 4, "k": 2, "kept": True, "dropped": None,
        })  # fmt: skip
        _reference(out, window, split)
    for i, (types, role, climax, before) in enumerate(
        ((["Trade.Buy"], "buyer", False, []), (["Attack.*"], "attacker", True, ["s1"])), 1
    ):
        out["trajectories/skeletons"].append({
            "intent_id": "attack", "version": 1, "title": "Who attacked?", "sha256": sha256_text("attack"),
            "slot_id": f"s{i}", "types": types, "roles": [role], "weight": 0.5, "required": climax, "climax": climax,
            "predecessors": before,
        })  # fmt: skip
    out["trajectories/negatives"].append({
        "window_id": "w1", "intent_id": "attack", "negative_id": "w1|attack|drop_climax|0", "kind": "drop_climax",
        "candidate_id": candidate("w1", "Ann"), "other_id": None, "steps": '[["Trade.Buy", "buyer", 0]]', "spans": None,
    })  # fmt: skip
    return out


def _concrete() -> list[str]:
    names = []
    for declared in tables.TABLES:
        if declared.startswith("audit/"):
            names.append(declared)
            continue
        todo = [declared]
        for place, values in (
            ("split", tables.SPLITS), ("setting", tables.SETTINGS), ("part", ("train", "tune", "audit")),
            ("system", SYSTEMS), ("policy", ()),
        ):  # fmt: skip
            todo = [n.replace(f"<{place}>", v) for n in todo for v in (values if f"<{place}>" in n else ("",))]
        names += todo
    return names


def _gold(out: dict[str, list[Row]], window: str, split: str) -> None:
    gold = f"ingest/gold/{split}"
    for name in NAMES:
        out[f"{gold}/entities"].append(
            {"window_id": window, "entity_id": f"{window}#{name}", "name": name, "type": "PER"}
        )
        for nth in range(TEXT.count(name)):
            place = {**spans(window, name, nth), "entity_id": f"{window}#{name}"}
            out[f"{gold}/mentions"].append({**place, "mention_id": f"{window}#{name}{nth}", "type": "PER"})
            out["ingest/roster"].append({**place, "kind": "entity"})
    for trigger, kind in EVENTS:
        out[f"{gold}/events"].append({
            **spans(window, trigger), "event_id": f"{window}#{trigger}", "chain_id": f"{window}#{trigger}c",
            "type": kind, "realis": "Actual",
        })  # fmt: skip
    for trigger, name, nth, role in ACTS:
        out[f"{gold}/arguments"].append({
            "window_id": window, "event_id": f"{window}#{trigger}", "mention_id": f"{window}#{name}{nth}", "role": role,
        })  # fmt: skip
    out[f"{gold}/relations"].append({
        "window_id": window, "head_event_id": f"{window}#bought", "tail_event_id": f"{window}#shot", "type": "BEFORE",
    })  # fmt: skip


def _extracted(out: dict[str, list[Row]], window: str) -> None:
    for name in NAMES:
        for nth in range(TEXT.count(name)):
            out["extract/mentions"].append({
                **spans(window, name, nth), "mention_id": f"{window}#m{name}{nth}", "entity_id": f"{window}#x{name}",
                "type": None, "confidence": 0.9,
            })  # fmt: skip
    for order, (trigger, kind) in enumerate(EVENTS):
        out["extract/events"].append({
            **spans(window, trigger), "event_id": f"{window}#e{order}", "chain_id": f"{window}#c{order}", "type": kind,
            "confidence": 0.8, "order": order,
        })  # fmt: skip
    events = [trigger for trigger, _ in EVENTS]
    for trigger, name, nth, role in ACTS:
        out["extract/arguments"].append({
            "window_id": window, "event_id": f"{window}#e{events.index(trigger)}",
            "mention_id": f"{window}#m{name}{nth}", "role": role, "confidence": 0.7,
        })  # fmt: skip
    out["extract/relations"].append({
        "window_id": window, "head_event_id": f"{window}#e0", "tail_event_id": f"{window}#e2", "type": "BEFORE",
        "confidence": 0.6,
    })  # fmt: skip


def _setting(out: dict[str, list[Row]], window: str, split: str, setting: str) -> None:
    ids = sorted(candidate(window, name) for name in NAMES)
    local = dict(zip(ids, local_ids("C", 4, 7, window), strict=True))
    events = [trigger for trigger, _ in EVENTS]
    for name in NAMES:
        key = candidate(window, name)
        out[f"roster/{setting}/candidates"].append({
            "window_id": window, "candidate_id": key, "local_id": local[key], "name": name,
            "mentions": TEXT.count(name),
        })  # fmt: skip
        for nth in range(TEXT.count(name)):
            out[f"roster/{setting}/mentions"].append({
                **spans(window, name, nth), "candidate_id": key, "mention_id": f"{window}#m{name}{nth}",
                "confidence": 0.9,
            })  # fmt: skip
    out[f"roster/{setting}/arguments"] += [r for r in out["extract/arguments"] if r["window_id"] == window]
    surfaces = [(t, 0, "trigger") for t in events]
    surfaces += [(n, nth, "mention") for n in NAMES for nth in range(TEXT.count(n))]
    surfaces.sort(key=lambda s: find(s[0], s[1]))
    handles = dict(zip([find(s, n) for s, n, _ in surfaces], local_ids("E", len(surfaces), 7, window), strict=True))
    for surface, nth, kind in surfaces:
        start, end = find(surface, nth)
        out[f"trajectories/{setting}/handles"].append({
            **spans(window, surface, nth), "handle_id": handles[start, end], "kind": kind,
            "sentence": _sentence(start), "confidence": 0.7, "bucket": "high",
        })  # fmt: skip
    seen: dict[str, int] = {}
    for trigger, name, nth, role in ACTS:
        order, a, b = events.index(trigger), find(trigger), find(name, nth)
        seen[name] = seen.get(name, -1) + 1
        out[f"trajectories/{setting}/steps"].append({
            "window_id": window, "candidate_id": candidate(window, name), "step": seen[name],
            "event_id": f"{window}#e{order}", "type": EVENTS[order][1], "role": role, "order": order,
            "confidence": 0.56, "doc_id": f"{window}:doc-1", "trigger_start": a[0], "trigger_end": a[1],
            "mention_start": b[0], "mention_end": b[1], "trigger_handle": handles[a], "mention_handle": handles[b],
        })  # fmt: skip
    if split == "test":
        for system in SYSTEMS:
            _ranked(out, window, setting, system, local, handles)


def _ranked(
    out: dict[str, list[Row]], window: str, setting: str, system: str, local: dict[str, str],
    handles: dict[tuple[int, int], str],
) -> None:  # fmt: skip
    """Ann first, certified by s1 = (bought, Ann) and s2 = (shot, Ann); then Dan, who completes the list."""
    place = {"window_id": window, "intent_id": "attack"}
    for rank, name in enumerate(("Ann", "Dan"), 1):
        key = candidate(window, name)
        out[f"rank/{system}/{setting}/rankings"].append({
            **place, "split": "test", "rank": rank, "candidate_id": key, "local_id": local[key], "name": name,
            "score": 1.0 / rank, "emitted": rank == 1, "status": "certified" if rank == 1 else "uncertified",
            "reject_code": None,
        })  # fmt: skip
    text = []
    for slot, (trigger, nth) in (("s1", ("bought", 0)), ("s2", ("shot", 1))):
        cited = [find(trigger), find("Ann", nth)]
        text.append(f"{slot}={','.join(handles[c] for c in cited)}")
        out[f"rank/{system}/{setting}/certificates"] += [
            {
                **place, "rank": 1, "candidate_id": candidate(window, "Ann"), "slot_id": slot,
                "nth": n, "doc_id": f"{window}:doc-1", "start": start, "end": end, "handle_id": handles[start, end],
                "sha256": sha256_text(TEXT),
            }
            for n, (start, end) in enumerate(cited)
        ]  # fmt: skip
    out[f"rank/{system}/{setting}/generations"].append({
        **place, "sample": 0, "attempt": 0, "chosen": True, "status": "parsed", "prompt_tokens": 0, "tokens": 0,
        "text": f"{local[candidate(window, 'Ann')]} {' '.join(text)} .", "dropped_steps": 0,
    })  # fmt: skip
    for metric, value in (("ndcg", 1.0), ("cert_ndcg", 0.9)):
        out["audit/instances"].append({**place, "system": system, "setting": setting, "metric": metric, "value": value})
    out["audit/entries"].append({
        **place, "system": system, "setting": setting, "rank": 1, "candidate_id": candidate(window, "Ann"), "grade": 3,
        "valid": True, "reject_code": None, "recovered": candidate(window, "Ann"), "sigma": 1.2, "gold_gate": True,
        "characters": 16,
    })  # fmt: skip


def _reference(out: dict[str, list[Row]], window: str, split: str) -> None:
    place = {"window_id": window, "intent_id": "attack"}
    a, b = find("shot"), find("Ann", 1)
    for part in ("audit", split):
        if part not in ("train", "tune", "audit"):
            continue
        out[f"reference/{part}/instances"].append(
            {**place, "split": split, "k": 2, "idcg": 7.0, "kept": True, "dropped": None}
        )
        out[f"reference/{part}/grades"] += [
            {**place, "entity_id": f"{window}#{name}", "grade": 3 if name == "Ann" else 0} for name in NAMES
        ]
        out[f"reference/{part}/mapping"] += [
            {
                "window_id": window, "setting": setting, "candidate_id": candidate(window, name),
                "entity_id": f"{window}#{name}", "iou": float(TEXT.count(name)),
            }
            for setting in tables.SETTINGS for name in NAMES
        ]  # fmt: skip
        out[f"reference/{part}/sufficient"].append({
            **place, "entity_id": f"{window}#Ann", "set": 0,
            "spans": sorted(f"{window}:doc-1:{start}-{end}" for start, end in (a, b)),
        })  # fmt: skip
