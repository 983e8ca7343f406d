"""`certrank intents mine`: propose plan skeletons from the annotated train split, for a person to read and freeze.

For every event family that enough candidates act in (the *climax*), and its most frequent agent-like role or roles, it
looks for families that the same candidates also acted in beforehand: pairs of distinct events that share a candidate
and are directed by a BEFORE, CAUSE, PRECONDITION or SUBEVENT relation, or, in a corpus without relations, that stand in
this order in the text (order then only chooses slots: they get no predecessors). A pair of families is kept from
`support` candidates on and with an add-one lift of at least 1 (`pair_lifts`); slots are then chosen by greedy cover, as
long as one explains `support` further candidates, at most `MAX_MINED`.

Weights: climax 0.5; the mined slots share 0.35, each getting `FLOOR` and the rest by support; 0.15 for taking part in a
climax event in another role. Without mined slots the climax gets 0.85. So the smallest weight is 0.11: a verifier that
accepts support from 0.10 on (`verifier.accept`) can certify every single slot, because a tight citation of one slot
has a support of its weight plus 0.1 and loses at most a little to unused characters.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated as Typed

import typer
from ruamel.yaml import YAML

from pipeline import tables
from pipeline.errors import ParamError
from pipeline.files import write_text
from pipeline.skeletons import MICRO, parse_intent
from stages.trajectories.annotated import Annotated, AnnotatedReader
from stages.trajectories.steps import SELF

CLIMAX, MINED, PART, FLOOR = 500_000, 350_000, 150_000, 110_000
"""Shares of the weight, in integers of 1e-6."""

MAX_MINED = 3
"""With the climax and the `part` slot a skeleton has at most five slots; more would fall below the floor."""

CIRCUMSTANCES = (
    "attack-pattern", "crime", "cve", "damage-amount", "date", "destination", "instrument", "issues-addressed",
    "money", "number-of-data", "number-of-victim", "origin", "patch-number", "payment-method", "place", "price",
    "purpose", "self",
    "supported_platform", "time", "vehicle", "vulnerable_system_version",
)  # fmt: skip
"""Roles that name no participant; they are never a target."""

JOINED_ROLES = (("cause", "precondition"),)
"""Roles that are one role family although their names do not say so."""

ROLE_SHARE = 0.2
"""A role belongs to a mined slot when at least this share of the slot's candidates plays it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to propose.

    Args:
        depth: dotted parts of a type name that make its family; types of that many parts stand for themselves.
        support: least candidates for a pair of events, and least further candidates for a slot.
        targets: least candidates in a target role for a climax to be proposed.
        roles: how many target roles per climax family, each an intent of its own.
        repeats: whether another event of the climax family may be a slot.
    """

    depth: int = 2
    support: int = 5
    targets: int = 20
    roles: int = 1
    repeats: bool = True


@dataclass(frozen=True, slots=True)
class Act:
    """One candidate in one event: coreference chain, family, exact type, role, place in the window's order."""

    chain: str
    family: str
    role: str
    order: int


@dataclass(frozen=True, slots=True)
class Life:
    """All acts of one candidate, and the directed pairs of chains in its window (None: the corpus has no relations)."""

    acts: tuple[Act, ...]
    edges: frozenset[tuple[str, str]] | None

    def leads(self, act: Act, climax: Act) -> bool:
        """Whether the one event leads to the other."""
        if act.chain == climax.chain:
            return False
        return act.order < climax.order if self.edges is None else (act.chain, climax.chain) in self.edges


@dataclass(frozen=True, slots=True)
class Proposal:
    """A mined intent: the YAML mapping, and what it stands on."""

    intent: dict[str, object]
    targets: int
    slots: tuple[tuple[str, int, float], ...] = field(default=())
    """(family, support, lift) of the mined slots."""


def family(event_type: str, depth: int) -> str:
    """The family pattern of a type: `conflict.attack.stabbing` -> `conflict.attack.*` at depth 2."""
    parts = event_type.split(".")
    return event_type if len(parts) <= depth else ".".join(parts[:depth]) + ".*"


def read_lives(root: Path, options: Options) -> list[Life]:
    """Every train candidate's acts."""
    reader = AnnotatedReader(["train"], root)
    windows = [w for shard in tables.shards("ingest/documents", root) for w in reader.windows(shard)]
    directed = any(w.edges for w in windows)
    return [life for window in windows for life in _lives(window, directed, options.depth)]


def _lives(window: Annotated, directed: bool, depth: int) -> Iterator[Life]:
    edges = window.edges if directed else None
    for steps in window.trajectories().values():
        acts = {Act(window.chains[s.event_id], family(s.type, depth), s.role, s.order) for s in steps}
        if acts:
            yield Life(tuple(sorted(acts, key=lambda a: (a.order, a.family, a.role))), edges)


def propose(lives: list[Life], options: Options) -> list[Proposal]:
    """Intents for every climax family and target role with enough candidates, most candidates first."""
    roles: dict[str, Counter[str]] = defaultdict(Counter)
    for life in lives:
        for name, role in sorted({(a.family, a.role) for a in life.acts}):
            roles[name][role] += 1
    lifts = pair_lifts(lives)
    proposals = []
    for name in sorted(roles):
        for target in _target_roles(roles[name])[: options.roles]:
            climaxes = [(life, [a for a in life.acts if a.family == name and a.role in target]) for life in lives]
            filled = [(life, found) for life, found in climaxes if found]
            if len(filled) >= options.targets:
                proposals.append(_proposal(name, target, roles[name], filled, lifts, options))
    return sorted(proposals, key=lambda p: (-p.targets, str(p.intent["id"])))


def pair_lifts(lives: Iterable[Life]) -> dict[tuple[str, str], float]:
    """Add-one lift of every ordered pair of families, over the candidates with any directed pair of events.

    With N such candidates, n_a whose event of family a leads to another, n_b whose event of family b is led to, n_ab
    with both in one pair: (n_ab + 1)(N + 1) / (n_a + 1)(n_b + 1). It is 1 where every candidate has the pair.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    heads: Counter[str] = Counter()
    tails: Counter[str] = Counter()
    total = 0
    for life in lives:
        found = {(a.family, b.family) for a in life.acts for b in life.acts if life.leads(a, b)}
        pairs.update(sorted(found))
        heads.update({a for a, _ in found})
        tails.update({b for _, b in found})
        total += bool(found)
    return {(a, b): (n + 1) * (total + 1) / ((heads[a] + 1) * (tails[b] + 1)) for (a, b), n in pairs.items()}


def _target_roles(counts: Counter[str]) -> list[tuple[str, ...]]:
    """Role families by support of their first role; `damagerdestroyer` joins `damager` and `destroyer`."""
    left = sorted((r for r in counts if r.casefold() not in CIRCUMSTANCES), key=lambda r: (-counts[r], r))
    out: list[tuple[str, ...]] = []
    while left:
        group = [left.pop(0)]
        for role in group:  # grows while it is walked: akin roles of akin roles belong too
            akin = [r for r in left if _akin(role, r)]
            group += akin
            left = [r for r in left if r not in akin]
        out.append(tuple(sorted(group)))
    return out


def _akin(a: str, b: str) -> bool:
    """Whether one name begins or ends with the other, or both are listed as one family."""
    if any({a, b} <= set(group) for group in JOINED_ROLES):
        return True
    short, long = sorted((a, b), key=len)
    return len(short) >= 5 and (long.startswith(short) or long.endswith(short))


def _proposal(
    name: str, target: tuple[str, ...], roles: Counter[str], filled: list[tuple[Life, list[Act]]],
    lifts: dict[tuple[str, str], float], options: Options,
) -> Proposal:  # fmt: skip
    covers: dict[str, dict[int, Act]] = defaultdict(dict)
    for i, (life, climaxes) in enumerate(filled):
        for act in life.acts:
            # A second event of the climax family is a slot of its own only in the target role; else it is `part`.
            again = options.repeats and act.role in target
            if (act.family != name or again) and any(life.leads(act, c) for c in climaxes):
                covers[act.family].setdefault(i, act)
    frequent = {f: set(c) for f, c in covers.items() if len(c) >= options.support and lifts[f, name] >= 1}
    chosen = _greedy_cover(frequent, options)
    weights = share_weights([len(covers[f]) for f in chosen])
    directed = filled[0][0].edges is not None
    slots: list[dict[str, object]] = []
    for f, weight in zip(chosen, weights.mined, strict=True):
        played = Counter(act.role for act in covers[f].values())
        allowed = sorted(r for r, n in played.items() if n >= ROLE_SHARE * len(covers[f]))
        slots.append({"types": [f], "roles": list(target) if f == name else allowed, "weight": weight / MICRO})
    others = ["*", *(f"!{r}" for r in target), *(["!self"] if SELF in roles else [])]
    slots.append({"types": [name], "roles": list(target), "weight": weights.climax / MICRO, "required": True,
                  "climax": True})  # fmt: skip
    slots.append({"types": [name], "roles": others, "weight": weights.part / MICRO})
    for i, slot in enumerate(slots):
        slot["id"] = f"s{i + 1}"
    if directed and chosen:
        slots[len(chosen)]["after"] = [f"s{i + 1}" for i in range(len(chosen))]
    intent = {
        "id": _slug(f"{name}_{target[0]}"), "version": 1, "title": f"Who is {' or '.join(target)} in {name}",
        "status": "mined", "slots": slots,
    }  # fmt: skip
    return Proposal(intent, len(filled), tuple((f, len(covers[f]), lifts[f, name]) for f in chosen))


def _greedy_cover(covers: dict[str, set[int]], options: Options) -> list[str]:
    """Families that cover the most uncovered candidates, until none adds `support` of them."""
    chosen: list[str] = []
    covered: set[int] = set()
    while len(chosen) < MAX_MINED:
        gains = {f: len(c - covered) for f, c in covers.items() if f not in chosen}
        best = min(gains, key=lambda f: (-gains[f], f), default=None)
        if best is None or gains[best] < options.support:
            break
        chosen.append(best)
        covered |= covers[best]
    return chosen


@dataclass(frozen=True, slots=True)
class Weights:
    """Slot weights in integers of 1e-6; they sum to 1e6."""

    climax: int
    part: int
    mined: tuple[int, ...]


def share_weights(supports: list[int]) -> Weights:
    """Weights of a skeleton with these mined slots (task definition, section 2), rounded to 0.005.

    Raises:
        ValueError: more than `MAX_MINED` slots.
    """
    if len(supports) > MAX_MINED:
        raise ValueError(f"at most {MAX_MINED} mined slots, not {len(supports)}")
    if not supports:
        return Weights(CLIMAX + MINED, PART, ())
    grain = 5_000
    free = MINED - FLOOR * len(supports)
    mined = [FLOOR + free * s // sum(supports) // grain * grain for s in supports]
    mined[supports.index(max(supports))] += MINED - sum(mined)
    return Weights(CLIMAX, PART, tuple(mined))


def _slug(name: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_")
    return slug if slug[:1].isalpha() else f"i_{slug}"


def render_intent(intent: dict[str, object], note: str = "") -> str:
    """An intent as a YAML file, one slot per line, `note` as a leading comment."""
    keys = ("id", "types", "roles", "weight", "required", "climax", "after")
    lines = [f"# {line}" for line in note.splitlines()]
    lines += [f"{key}: {json.dumps(intent[key], ensure_ascii=False)}" for key in ("id", "version", "title", "status")]
    lines.append("slots:")
    slots = intent["slots"]
    assert isinstance(slots, list)
    for slot in slots:
        body = ", ".join(f"{key}: {json.dumps(slot[key], ensure_ascii=False)}" for key in keys if key in slot)
        lines.append(f"  - {{{body}}}")
    return "\n".join(lines) + "\n"


def mine_intents(root: Path, out: Path, options: Options | None = None) -> list[Proposal]:
    """Mine the train split under `root` and write one `status: mined` YAML file per proposal into `out`.

    A file in `out` that a person has frozen is never touched.

    Raises:
        ParamError: no climax has enough annotated train candidates.
        TableError: the corpus has not been ingested.
    """
    options = options or Options()
    proposals = propose(read_lives(root, options), options)
    if not proposals:
        raise ParamError(
            f"no event family of the train split has {options.targets} candidates in one role",
            file=root, mend="annotate more, lower --targets, or write an intent by hand (docs/intents.md)",
        )  # fmt: skip
    for proposal in proposals:
        file = out / f"{proposal.intent['id']}.yaml"
        if file.is_file() and _frozen(file):
            print(f"  {file} is frozen and was left alone", file=sys.stderr)
            continue
        parse_intent(proposal.intent, file)
        pairs = [f"{f}: {n} candidates, lift {lift:.1f}" for f, n, lift in proposal.slots]
        note = "\n".join([f"mined from the train split: {proposal.targets} candidates fill the climax", *pairs])
        write_text(file, render_intent(proposal.intent, note))
    return proposals


def _frozen(file: Path) -> bool:
    raw = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    return not (isinstance(raw, dict) and raw.get("status") == "mined")


def proposal_table(proposals: Iterable[Proposal]) -> str:
    """The proposals as a plain-text table."""
    rows = [("intent", "targets", "mined slots (candidates, lift)")]
    for p in proposals:
        slots = ", ".join(f"{f} ({n}, {lift:.1f})" for f, n, lift in p.slots)
        rows.append((str(p.intent["id"]), str(p.targets), slots or "-"))
    left, middle = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n".join(f"{a:<{left}}  {b:>{middle}}  {c}" for a, b, c in rows)


app = typer.Typer(help="Plan skeletons.", no_args_is_help=True)


@app.callback()
def _intents() -> None:
    """Plan skeletons: mine them from annotated documents."""


@app.command("mine")
def mine(
    out: Typed[Path, typer.Argument(help="folder for the proposals, e.g. intents/jsonl")],
    data: Typed[Path, typer.Option(help="data directory of an ingested corpus")] = Path("data"),
    roles: Typed[int, typer.Option(min=1, help="target roles per climax family")] = 1,
    targets: Typed[int, typer.Option(min=1, help="least candidates that fill a climax")] = 20,
    support: Typed[int, typer.Option(min=1, help="least candidates behind a mined slot")] = 5,
    depth: Typed[int, typer.Option(min=1, help="dotted parts of a type that make its family")] = 2,
    repeats: Typed[bool, typer.Option(help="let another event of the climax family be a slot")] = True,
) -> None:
    """Propose plan skeletons from the annotated train split; a person reads, edits and freezes them."""
    options = Options(depth=depth, support=support, targets=targets, roles=roles, repeats=repeats)
    proposals = mine_intents(data, out, options)
    print(proposal_table(proposals))
    print(f"{len(proposals)} proposals in {out}; read them, then set `status: frozen` (docs/intents.md)")
