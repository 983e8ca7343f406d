"""Small windows in memory, for everyone's tests. Nothing is read or written.

    from tests.builders import act, build_window, skeleton_of, story

`story()` is the shared example: two documents, four candidates, a plan of three slots. `build_window` makes any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from pipeline.skeletons import MICRO, Skeleton, Slot
from pipeline.spans import Span, sha256_text
from pipeline.windows import Candidate, Document, Handle, Step, Window, local_ids


def document(doc_id: str, text: str) -> Document:
    """A document with one sentence per line."""
    sentences, start = [], 0
    for line in text.split("\n"):
        if line:
            sentences.append((start, start + len(line)))
        start += len(line) + 1
    return Document(doc_id, text, sha256_text(text), tuple(sentences))


def find(doc: Document, surface: str, nth: int = 0) -> Span:
    """The span of the nth occurrence (from 0) of `surface`."""
    start = -1
    for _ in range(nth + 1):
        start = doc.text.index(surface, start + 1)
    return Span(doc.doc_id, start, start + len(surface))


def act(
    candidate_id: str, type_: str, role: str, trigger: Span, mention: Span, *, order: int = 0, confidence: float = 0.9
) -> Step:
    """A step; its event is named by trigger and type, as one (span, type) hypothesis of the extractor."""
    return Step(candidate_id, f"{trigger}/{type_}", type_, role, order, confidence, trigger, mention)


def build_window(
    texts: Mapping[str, str] | Sequence[Document],
    candidates: Sequence[str],
    steps: Sequence[Step],
    *,
    extra: Sequence[Span] = (),
    window_id: str = "w1",
    split: str = "test",
    setting: str = "closed",
    k: int | None = None,
    seed: int = 7,
) -> Window:
    """A window whose handles are the spans of `steps` (and `extra`, as mentions).

    Args:
        texts: doc_id -> text with one sentence per line, or documents.
        candidates: canonical ids, in order; also their names. Local ids are drawn from `seed`.
        steps: of all candidates; sorted here by (candidate, event order, text).
        k: length of the list; default min(5, n // 2), as in the task definition.
    """
    documents = [document(d, t) for d, t in texts.items()] if isinstance(texts, Mapping) else list(texts)
    by_id = {d.doc_id: d for d in documents}
    triggers = {s.trigger for s in steps}
    mentions = {s.mention for s in steps} | set(extra)
    spans = sorted(triggers | mentions)
    handles = []
    for span, handle_id in zip(spans, local_ids("E", len(spans), seed, window_id), strict=True):
        kind = "both" if span in triggers and span in mentions else "trigger" if span in triggers else "mention"
        inside = [i for i, (a, b) in enumerate(by_id[span.doc_id].sentences) if a <= span.start < b]
        confidence = max((s.confidence for s in steps if span in (s.trigger, s.mention)), default=1.0)
        bucket = "high" if confidence >= 0.5 else "medium" if confidence >= 0.2 else "low"
        handles.append(Handle(handle_id, span, kind, inside[0] if inside else 0, confidence, bucket))
    roster = tuple(
        Candidate(candidate_id, local_id, candidate_id)
        for candidate_id, local_id in zip(
            candidates, local_ids("C", len(candidates), seed, window_id), strict=True
        )
    )  # fmt: skip
    place = {c: i for i, c in enumerate(candidates)}
    ordered = sorted(steps, key=lambda s: (place[s.candidate_id], s.order, s.trigger, s.mention, s.role))
    return Window(
        window_id, split, setting, min(5, len(candidates) // 2) if k is None else k,
        by_id, roster, tuple(ordered), tuple(handles),
    )  # fmt: skip


def skeleton_of(*slots: tuple[str, Sequence[str], Sequence[str], float] | Slot) -> Skeleton:
    """A skeleton from (slot_id, types, roles, weight) tuples; the first slot is the climax and required."""
    return Skeleton(
        tuple(
            s if isinstance(s, Slot) else Slot(s[0], tuple(s[1]), tuple(s[2]), round(s[3] * MICRO), i == 0, i == 0)
            for i, s in enumerate(slots)
        )
    )


PLAN = Skeleton(
    (
        Slot("s1", ("attack",), ("attacker",), 500_000, True, True, ("s2",)),
        Slot("s2", ("buy",), ("buyer",), 350_000),
        Slot("s3", ("attack",), ("*", "!attacker"), 150_000),
    )
)
"""Who attacked (s1), having bought something before (s2)? s3 is the `part` slot: an attack in another role."""


def story(seed: int = 7) -> Window:
    """Four candidates: Ada bought and attacked, Bob attacked, Cay bought and was hit, Dot did nothing. k is 2."""
    one = document("news-1", "Ada bought a drill on Monday.\nCay purchased a map from a stall.\nNothing else was sold.")
    two = document(
        "news:2",
        "Ada then attacked the vault of Cay.\nBob raided the old mill at night.\n"
        + "The police said that Dot was elsewhere.\n"
        + "The town has talked about little else since, and every shop on the market square has shut its doors.\n" * 6,
    )
    steps = [
        act("Ada", "buy", "buyer", find(one, "bought"), find(one, "Ada"), order=0),
        act("Cay", "buy", "buyer", find(one, "purchased"), find(one, "Cay"), order=1),
        act("Ada", "attack", "attacker", find(two, "attacked"), find(two, "Ada"), order=2),
        act("Cay", "attack", "target", find(two, "attacked"), find(two, "Cay"), order=2),
        act("Bob", "attack", "attacker", find(two, "raided"), find(two, "Bob"), order=3, confidence=0.4),
    ]
    return build_window([one, two], ["Ada", "Bob", "Cay", "Dot"], steps, extra=[find(two, "Dot")], seed=seed)


def random_window(
    seed: int, *, candidates: int = 6, events: int = 8, lattice: bool = True, k: int | None = None
) -> Window:
    """A random window over event types t0..t3 and roles r0..r3; mentions may be shared and triggers ambiguous."""
    rng = Random(seed)
    lines, places = [], []
    for e in range(events):
        actors = rng.sample(range(candidates), k=min(candidates, rng.randint(1, 3)))
        places.append(actors)
        words = [f"verb{e:03d}", *(f"Name{c:03d}" for c in actors), *("pad" for _ in range(rng.randint(0, 4)))]
        rng.shuffle(words)
        lines.append(" ".join(words) + ".")
    doc = document(f"d:{seed}", "\n".join(lines))
    ids = [f"cand{c}" for c in range(candidates)]
    steps, order = [], list(range(events))
    rng.shuffle(order)
    for e, actors in enumerate(places):
        low, high = doc.sentences[e]
        verb = find(doc, f"verb{e:03d}")
        for type_ in rng.sample(["t0", "t1", "t2", "t3"], k=2 if lattice and rng.random() < 0.3 else 1):
            for c in actors:
                at = doc.text.index(f"Name{c:03d}", low, high)
                mention = Span(doc.doc_id, at, at + len(f"Name{c:03d}"))
                for role in rng.sample(["r0", "r1", "r2", "r3"], k=rng.randint(1, 3) if lattice else 1):
                    steps.append(
                        act(ids[c], type_, role, verb, mention, order=order[e], confidence=rng.randint(5, 100) / 100)
                    )
    return build_window([doc], ids, steps, k=k, window_id=f"w{seed}", seed=seed)
