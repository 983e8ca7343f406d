"""Stage `audit`: judges every list of every system against gold and against its own evidence.

Nothing that a system's stage says about itself is believed. For each kept (window, intent) and each roster setting the
audit parses nothing and repairs nothing: it resolves the cited spans, checks validity, runs the verifier, applies the
gold gate, asks the same verifier again with what a held-out extractor read (level L3), damages the certificates in
known ways (`counterfactuals.py`), and sweeps the verifier's thresholds. Figures are means over instances with a paired
bootstrap over windows; one matrix of resamples serves all systems and settings.

On a corpus without gold the labelled metrics are null with n = 0 and the label-free ones are computed over every
(window, intent) in which some candidate has an extracted target event.

Of policies it also counts what they wrote and what that cost (`outputs.py`), and compares what they answered when asked
again (`probes.py`).

Writes to data/audit: metrics.json (system -> setting -> metric -> {value, low, high, n}), differences.json (paired,
against rm_attach), counterfactuals.json, sweep.json, extraction.json, policies.json, summary.json, plots/*.csv, and the
tables instances and entries. docs/metrics.md defines every figure. Run it with `dvc repro audit`, or alone with

    python -m stages.audit
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import files, metrics, tables
from pipeline.errors import DataError
from pipeline.params import Params
from pipeline.rankings import count_windows
from pipeline.skeletons import MICRO, Intent, intents_from_table
from pipeline.stage import progress, run
from pipeline.tables import Reader, Writer
from pipeline.verifier import NONE
from pipeline.windows import Window, load_windows
from stages.audit import extraction, outputs, plots, probes, summary
from stages.audit.cases import Case, View
from stages.audit.counterfactuals import TESTS
from stages.audit.heldout import HeldoutReader
from stages.audit.inputs import Key, Listed, ListReader, ReferenceReader, Shard
from stages.audit.lists import Judged, judge, lax_verdicts, scores
from stages.audit.summary import Cell
from stages.audit.tallies import Results

TABLES = ("instances", "entries")
ORACLE = "oracle"
SCRATCH = files.WORK / "audit"
Rows = dict[str, list[tuple[object, ...]]]


def main(params: Params) -> None:
    """Audit all lists and write data/audit."""
    systems = sorted({*params.rank.systems, *params.rank_policy.systems, ORACLE})
    settings = sorted(params.roster.settings)
    reference = ReferenceReader(params.rank.splits)
    if reference.label_free:
        print("  no graded instance in the audited splits: label-free metrics only", file=sys.stderr)
    results: dict[Cell, Results] = {(system, setting): Results() for system in systems for setting in settings}
    judged_windows: set[str] = set()
    # What a killed run left; the stage's lock keeps others out.
    shutil.rmtree(SCRATCH, ignore_errors=True)
    SCRATCH.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
        for setting in settings:
            judged_windows |= audit_setting(setting, systems, params, reference, results, Path(scratch))
        merge_tables(sorted(results), Path(scratch))
    write_figures(results, sorted(judged_windows), params, reference)


def audit_setting(
    setting: str,
    systems: Sequence[str],
    params: Params,
    reference: ReferenceReader,
    results: dict[Cell, Results],
    scratch: Path,
) -> set[str]:
    """Judge every list of one roster setting, shard by shard.

    Returns:
        Ids of the windows that have a judged instance.
    """
    intents = {intent.intent_id: intent for intent in intents_from_table(tables.read("trajectories/skeletons"))}
    readers = {system: ListReader(system, setting) for system in systems}
    heldout = HeldoutReader(setting)
    if not heldout.present:
        print(f"  {setting}: nothing was read by a held-out extractor: L3 is null", file=sys.stderr)
    total = count_windows(params.rank.splits)
    ticks = progress(range(total), f"audit {setting}, windows", total)
    seen: set[str] = set()
    with ExitStack() as stack:
        writers = {
            (system, name): stack.enter_context(Writer(f"audit/{name}", file=scratch / part(name, system, setting)))
            for system in systems for name in TABLES
        }  # fmt: skip
        for shard, windows in windows_by_shard(setting, params):
            by_id = {window.window_id: window for window in windows}
            gold = reference.gold(shard, setting)
            keys = label_free_keys(windows, intents) if reference.label_free else [k for k in gold if k[0] in by_id]
            read = heldout.steps(shard)
            lists = {system: reader.lists(shard, by_id) for system, reader in readers.items()}
            rows: dict[str, Rows] = {system: {name: [] for name in TABLES} for system in systems}
            view: View | None = None
            for key in keys:
                window_id, intent_id = key
                seen.add(window_id)
                if view is None or view.window.window_id != window_id:
                    view = View(by_id[window_id], heldout.of(read, window_id))
                    next(ticks)
                case = Case(view, intents[intent_id], params, gold.get(key))
                for system in systems:
                    if key not in lists[system]:
                        raise DataError(
                            f"{system} did not rank window {window_id!r:.80} for intent {intent_id}",
                            file=tables.path(f"rank/{system}/{setting}/rankings"),
                            mend="run `dvc repro rank`",
                        )
                    audit_list(case, lists[system][key], params, results[system, setting], rows[system], system)
            for (system, name), writer in writers.items():
                writer.append(
                    pl.DataFrame(rows[system][name], schema=tables.table(f"audit/{name}").schema, orient="row")
                )
    return seen


def windows_by_shard(setting: str, params: Params) -> Iterator[tuple[Shard, list[Window]]]:
    """Every shard with its kept windows of the audited splits; a shard without any has an empty list."""
    stream = load_windows(setting, params.rank.splits)
    following = next(stream, None)
    for shard in tables.shards("roster/windows"):
        windows = []
        while following is not None and following.window_id <= shard[1]:
            windows.append(following)
            following = next(stream, None)
        yield shard, windows


def label_free_keys(windows: Sequence[Window], intents: dict[str, Intent]) -> list[Key]:
    """Instances of a corpus without gold: some candidate has an extracted step that fits the climax."""
    return [
        (window.window_id, intent_id)
        for window in windows for intent_id, intent in sorted(intents.items())
        if any(intent.skeleton.slots[intent.skeleton.climax].fits(s.type, s.role) for s in window.steps)
    ]  # fmt: skip


def audit_list(case: Case, listed: Listed, params: Params, results: Results, rows: Rows, system: str) -> None:
    """Judge one list, damage it, sweep thresholds; count everything and keep its rows."""
    judged = judge(case, listed)
    window_id = case.window.window_id
    results.add(window_id, judged)
    before = scores(case, listed, judged.gates)
    values = dict(judged.values)
    for test, damage in TESTS.items():
        gates = damage(case, listed)
        if gates is None:
            values[f"cert_ndcg_{test}"] = None
            continue
        after = scores(case, listed, gates)
        results.add_test(test, window_id, before, after, gates != judged.gates)
        values[f"cert_ndcg_{test}"] = after["cert_ndcg"]
    lax = lax_verdicts(case, listed)
    for accept in params.audit.sweep_accept:
        for margin in params.audit.sweep_margin:
            low, lead = round(accept * MICRO), round(margin * MICRO)
            gates = [v is not None and v[0] >= low and v[1] >= lead for v in lax]
            results.add_thresholds(accept, margin, window_id, scores(case, listed, gates))
    place = (system, case.window.setting, window_id, case.intent.intent_id)
    rows["instances"] += [(*place, metric, metrics.rounded(value)) for metric, value in values.items()]
    rows["entries"] += entry_rows(place, case, listed, judged)


def entry_rows(
    place: tuple[str, str, str, str], case: Case, listed: Listed, judged: Judged
) -> Iterator[tuple[object, ...]]:
    """Rows of `audit/entries` for one list."""
    grades = case.grades(listed.ranking)
    verdicts_l3 = judged.verdicts_l3 or [NONE] * len(listed.entries)
    rows = zip(listed.entries, judged.facts, judged.verdicts, verdicts_l3, strict=True)
    for i, (entry, facts, verdict, verdict_l3) in enumerate(rows):
        yield (
            *place, i + 1, entry.candidate_id, grades[i] if case.gold else None, facts.code is None, facts.code,
            verdict.candidate_id, verdict_l3.candidate_id, facts.sigma / MICRO, facts.gold_gate, facts.characters,
        )  # fmt: skip


def part(name: str, system: str, setting: str) -> str:
    """File in which the rows of one (system, setting) wait for their turn: the tables are sorted by system first."""
    return f"{name}-{system}-{setting}.parquet"


def merge_tables(cells: Sequence[Cell], scratch: Path) -> None:
    """Join the waiting parts of `instances` and `entries` in the tables' order."""
    with tables.writers([f"audit/{name}" for name in TABLES]) as writers:
        for name in TABLES:
            for cell in cells:
                for batch in Reader(f"audit/{name}", file=scratch / part(name, *cell)).batches(tables.ROW_GROUP):
                    writers[f"audit/{name}"].append(batch)


def write_figures(
    results: dict[Cell, Results], window_ids: Sequence[str], params: Params, reference: ReferenceReader
) -> None:
    """Bootstrap, and write every JSON and CSV file."""
    windows = {window_id: i for i, window_id in enumerate(window_ids)}
    weights = metrics.window_weights(len(windows), params.audit.bootstrap, params.seed)
    figures = summary.metric_figures(results, windows, weights, params.audit, params.seed)
    differences = summary.differences(results, windows, weights)
    tests = summary.counterfactuals(results, windows, weights)
    thresholds = summary.sweep(results, windows, weights, params.audit)
    as_json = summary.nested(
        (cell, {name: estimate.json() for name, estimate in found.items()}) for cell, found in figures.items()
    )
    out = Path("data/audit")
    files.write_json(out / "metrics.json", as_json)
    files.write_json(out / "differences.json", differences)
    files.write_json(out / "counterfactuals.json", tests)
    files.write_json(out / "sweep.json", thresholds)
    files.write_json(out / "policies.json", policies(windows, weights, params))
    extracted = extraction.scores(params)
    files.write_json(out / "extraction.json", extracted)
    files.write_json(
        out / "summary.json",
        {
            "label_free": reference.label_free,
            "splits": list(params.rank.splits),
            "windows": summary.window_counts(params.rank.splits),
            "windows_judged": len(windows),
            "instances": reference.dropped(),
            "bootstrap": params.audit.bootstrap,
            "lists": summary.list_counts(results),
        },
    )
    files.write_text(out / "plots/comparison.csv", plots.comparison(figures))
    for metric in plots.BARS:
        files.write_text(out / f"plots/{metric}.csv", plots.single(figures, metric))
    files.write_text(out / "plots/differences.csv", plots.differences(differences))
    files.write_text(out / "plots/counterfactuals.csv", plots.counterfactuals(tests))
    files.write_text(out / "plots/sweep.csv", plots.sweep(thresholds))
    files.write_text(out / "plots/reliability.csv", plots.reliability(extracted["reliability"]))
    print_headline(as_json)


def policies(windows: dict[str, int], weights: metrics.Floats, params: Params) -> summary.Figures:
    """What is said of language models alone: system -> setting -> outputs, costs, permutation, attacks."""
    cells = [(system, setting) for system in params.rank_policy.systems for setting in params.roster.settings]
    judged = outputs.feasible(cells)

    def figures(system: str, setting: str) -> dict[str, Any]:
        asked = probes.read(system, setting)
        return {
            "outputs": outputs.outputs(system, setting),
            "costs": outputs.costs(system, setting, judged[system, setting], windows, weights),
            "permutation": probes.permutation(asked, params.audit, params.seed),
            "attacks": probes.attacks(asked, params.audit, params.seed),
        }

    return summary.nested((cell, figures(*cell)) for cell in cells)


def print_headline(figures: summary.Figures) -> None:
    """CertNDCG of every system, one line each, on stderr."""
    settings = sorted({setting for cells in figures.values() for setting in cells})
    print(f"  {'CertNDCG (gold-gated)':24}" + "".join(f"{setting:>20}" for setting in settings), file=sys.stderr)
    for system, cells in figures.items():
        line = ""
        for setting in settings:
            certified, gold = (cells[setting][name]["value"] for name in ("cert_ndcg", "cert_ndcg_gold"))
            shown = "-" if certified is None else f"{certified:.3f} ({gold:.3f})"
            line += f"{shown:>20}"
        print(f"  {system:24}{line}", file=sys.stderr)


if __name__ == "__main__":
    run("audit", main)
