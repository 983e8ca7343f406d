"""How many bundles the verifier checks per second on one core, and whether that stays so as their number grows.

    python benchmarks/verifier.py

The claim (README, task definition section 6): at least 20,000 distinct bundles per second over a roster of 10 with 8
evidence handles per candidate, and time linear in the number of bundles. Each candidate takes part in four events of
its own (four triggers, four mentions) and, as co-participant, in events of others; roles are ambiguous as an extractor
with a lattice leaves them. Lists hold five bundles of different candidates, each the evidence of one to three events,
many of them padded with one or two stray handles. No two bundles of a timed set are equal and nothing is kept between
calls, so every one is computed. Times are CPU seconds of the one core used, medians over repeats. Two further rows show
what is not the usual case: bundles that cite everything, and a roster of a thousand.

Prints a table, writes benchmarks/results/verifier.json, exits 1 when the claim does not hold.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from random import Random
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe  # noqa: E402
from pipeline.files import write_json  # noqa: E402
from pipeline.skeletons import Skeleton, Slot  # noqa: E402
from pipeline.spans import Span  # noqa: E402
from pipeline.verifier import Verifier  # noqa: E402
from pipeline.windows import Step  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "verifier.json"
BAR = 20_000
LINEAR = 1.5
"""Largest allowed ratio of the time per bundle between any two sizes."""

K = 5
EVENTS = 4
SIZES = (2_500, 5_000, 10_000, 20_000, 40_000)
REPEATS = 5

PLAN = Skeleton(
    (
        Slot("s1", ("t0",), ("r0", "r1"), 500_000, True, True, ("s2", "s3")),
        Slot("s2", ("t1",), ("r0", "r1"), 150_000),
        Slot("s3", ("t2",), ("*", "!r0"), 100_000, False, False, ("s2",)),
        Slot("s4", ("t3",), ("r1",), 100_000),
        Slot("s5", ("t0",), ("*", "!r0", "!r1"), 150_000),
    )
)

Bundle = tuple[Span, ...]


def build_steps(candidates: int, rng: Random) -> list[Step]:
    """Trajectories: per candidate four events with trigger and mention, in half of them another candidate too."""
    steps: list[Step] = []
    mentions = {(c, e): Span("d", 100 * (EVENTS * c + e), 100 * (EVENTS * c + e) + rng.randint(3, 18))
                for c in range(candidates) for e in range(EVENTS)}  # fmt: skip
    orders = rng.sample(range(candidates * EVENTS), candidates * EVENTS)
    for c in range(candidates):
        for e in range(EVENTS):
            start = 100 * (EVENTS * c + e) + 40
            trigger, event_id = Span("d", start, start + rng.randint(3, 12)), f"event-{c}-{e}"
            actors = [(c, mentions[c, e])]
            if rng.random() < 0.5:
                other = rng.choice([x for x in range(candidates) if x != c])
                actors.append((other, mentions[other, rng.randrange(EVENTS)]))
            for actor, mention in actors:
                for role in rng.sample(["r0", "r1", "r2"], k=rng.randint(1, 2)):
                    steps.append(
                        Step(f"c{actor:05d}", event_id, f"t{e}", role, orders[EVENTS * c + e], rng.random(), trigger,
                             mention)
                    )  # fmt: skip
    return steps


def build_lists(steps: list[Step], bundles: int, rng: Random) -> list[list[Bundle]]:
    """Lists of K bundles, all bundles different from one another."""
    own: dict[str, list[Step]] = {}
    for step in steps:
        own.setdefault(step.candidate_id, []).append(step)
    roster, handles = sorted(own), sorted({s for step in steps for s in (step.trigger, step.mention)})
    seen: set[frozenset[Span]] = set()
    lists = []
    while len(seen) < bundles:
        made: list[Bundle] = []
        for candidate in rng.sample(roster, k=K):
            spans: set[Span] = set()
            while not spans or frozenset(spans) in seen:
                cited = rng.sample(own[candidate], k=min(rng.randint(1, 3), len(own[candidate])))
                spans = {span for step in cited for span in (step.trigger, step.mention)}
                if rng.random() < 0.5 or frozenset(spans) in seen:
                    spans |= set(rng.sample(handles, k=rng.randint(1, 2)))
            seen.add(frozenset(spans))
            made.append(tuple(rng.sample(sorted(spans), k=len(spans))))
        lists.append(made)
    return lists


def time_lists(verifier: Verifier, lists: list[list[Bundle]], repeats: int) -> tuple[float, int]:
    """Median CPU seconds to verify all lists, and how many bundles were accepted."""
    times, accepted = [], 0
    for _ in range(repeats):
        began = time.process_time()
        verdicts = [verdict for bundles in lists for verdict in verifier.verify(bundles)]
        times.append(time.process_time() - began)
        accepted = sum(verdict.candidate_id is not None for verdict in verdicts)
    return median(times), accepted


def measure(name: str, steps: list[Step], lists: list[list[Bundle]], repeats: int) -> dict[str, object]:
    """One row of the table."""
    verifier = Verifier(sorted({s.candidate_id for s in steps}), steps, PLAN)
    bundles = sum(map(len, lists))
    assert len({frozenset(bundle) for made in lists for bundle in made}) == bundles  # distinct, as claimed
    time_lists(verifier, lists[: len(lists) // 10 + 1], 1)  # warm the caches of the machine, not of the verifier
    seconds, accepted = time_lists(verifier, lists, repeats)
    spans = sum(len(bundle) for made in lists for bundle in made)
    return {
        "name": name, "bundles": bundles, "cpu_seconds": round(seconds, 4), "per_second": round(bundles / seconds),
        "microseconds_each": round(1e6 * seconds / bundles, 1), "spans_each": round(spans / bundles, 2),
        "accepted": round(accepted / bundles, 3), "repeats": repeats,
    }  # fmt: skip


def main() -> None:
    steps = build_steps(10, Random(1))
    handles = sorted({span for step in steps for span in (step.trigger, step.mention)})
    assert len(handles) == 10 * 2 * EVENTS
    lists = build_lists(steps, SIZES[-1], Random(2))
    rows = [measure(f"{size:,} bundles", steps, lists[: size // K], REPEATS) for size in SIZES]
    everything = [[tuple(handles[:cut]), tuple(handles[cut:])] for cut in range(1, 40)]
    rows.append(measure("all cited, two bundles", steps, everything, REPEATS))
    many = build_steps(1_000, Random(3))
    rows.append(measure("roster of 1,000", many, build_lists(many, 10_000, Random(4)), 3))

    columns = ("name", "bundles", "spans_each", "cpu_seconds", "per_second", "microseconds_each", "accepted")
    widths = [max(len(column), *(len(str(row[column])) for row in rows)) for column in columns]
    for cells in (columns, *([str(row[column]) for column in columns] for row in rows)):
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))
    growing = rows[: len(SIZES)]
    slowest = min(int(str(row["per_second"])) for row in growing)
    each = [float(str(row["microseconds_each"])) for row in growing]
    spread = max(each) / min(each)
    holds = slowest >= BAR and spread <= LINEAR
    print(f"\nslowest size: {slowest:,} per second (claim: at least {BAR:,})")
    print(f"time per bundle varies by a factor of {spread:.2f} over a {SIZES[-1] // SIZES[0]}-fold growth "
          f"(linear: at most {LINEAR})")  # fmt: skip
    print("the claim holds" if holds else "THE CLAIM DOES NOT HOLD")
    write_json(RESULTS, {
        "command": "python benchmarks/verifier.py", "machine": describe(), "rows": rows, "claim_per_second": BAR,
        "slowest_per_second": slowest, "time_per_bundle_spread": round(spread, 3), "holds": holds,
        "setting": {"roster": 10, "handles_per_candidate": 2 * EVENTS, "k": K, "slots": len(PLAN.slots), "cores": 1},
    })  # fmt: skip
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
