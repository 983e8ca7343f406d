"""Fitting the linear extractor on the train split.

Models that read other models' output (mentions see triggers, roles see mentions) are trained on output for documents
the other model was not fitted on: the train windows are halved, and each half is read by a model of the other half.
The halves' models cost little more than that, so they are kept, and read the train split (see folds.py).
Confidence is calibrated on the tune split; where it holds no event, on a tenth of the train windows set aside by hash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.extract.annotated import Annotated, fold_of
from stages.extract.calibrate import calibrate
from stages.extract.crf import Posterior, Tagger, choose, fit_tagger, list_spans, tags_of
from stages.extract.features import Words, lexical_rows, span_rows, token_rows, type_rows
from stages.extract.gold import Gold, read_gold, restrict
from stages.extract.hashing import Floats, Ints, Rows
from stages.extract.linear import (
    NO_ROLE,
    Floors,
    LinearExtractor,
    family_of,
    hash_names,
    safe_span_probabilities,
    steps_of,
    trigger_context,
)  # fmt: skip
from stages.extract.pairs import Spans, list_pairs, pair_rows
from stages.extract.softmax import Calibration, Classifier, Mask, fit_classifier
from stages.extract.tokens import Text, read_text

L2_TRIGGER, L2_TYPE, L2_MENTION, L2_ROLE = 5.0, 0.5, 2.0, 5.0
ROUNDS = 50
LONGEST_TRIGGER, LONGEST_MENTION = 8, 12
TRIGGER_FLOOR, MENTION_FLOOR = 0.05, 0.05
"""Spans of lower probability are not shown to later models in training."""
REACH = 2
"""Sentences between an event and an argument, at most; less where training holds none as far."""

Frames = Mapping[str, pl.DataFrame]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Annotated documents: their text, words, token features and gold."""

    text: Text
    words: Words
    rows: Rows
    gold: Gold

    @classmethod
    def read(cls, data: Annotated) -> Corpus:
        return cls.of(data.documents, data.sentences, data.gold)

    @classmethod
    def of(cls, documents: pl.DataFrame, sentences: pl.DataFrame, gold: Frames) -> Corpus:
        text = read_text(documents, sentences)
        words = Words.of(text)
        return cls(text, words, token_rows(words), read_gold(text, dict(gold)))


def fit_extractor(train: Corpus, held_out: Corpus, floors: Floors, say: Say) -> LinearExtractor:
    """Fit on `train`, calibrate on `held_out`.

    Args:
        train: documents with at least one event.
        held_out: documents, possibly none.
        floors: stored with the model.
        say: told what is being fitted.
    """
    return _fit(train, held_out, floors, say, folds=False)[0]


def cross_fit(
    train: Corpus, held_out: Corpus, floors: Floors, say: Say
) -> tuple[LinearExtractor, tuple[LinearExtractor, ...]]:
    """The model of all train windows and, for each half of them, one of the other half; arguments as above.

    Where a half holds no event there is nothing to fit on, and no model of a half.
    """
    whole, *folds = _fit(train, held_out, floors, say, folds=True)
    return whole, tuple(folds)


def _fit(train: Corpus, held_out: Corpus, floors: Floors, say: Say, folds: bool) -> list[LinearExtractor]:
    text, gold = train.text, train.gold
    half_T = _halves(text)
    half_E = half_T[gold.event_first]
    folds = folds and set(half_E.tolist()) == {0, 1}
    # Which items a model is fitted on: all, or all but a half.
    parts = (None, 0, 1) if folds else (None,)
    types = tuple(sorted(set(gold.event_type)))
    say(f"triggers: {len(gold.event_first)} in {int(gold.events_T.sum())} labelled words, {len(types)} types")
    halves = [_fit_trigger(train, gold.events_T & (half_T != h)) for h in (0, 1)]
    # The mean of the halves' weights is where fitting on everything starts: it saves half of the work.
    triggers = [_fit_trigger(train, gold.events_T, halves), *halves]
    kinds = [_fit_type(train, types, _but(half_E, part)) for part in parts]
    read = _read_triggers(train, halves, half_T)
    mentions: list[Tagger | None] = [None] * 3
    sorts: list[Classifier | None] = [None] * 3
    roles: list[Classifier | None] = [None] * 3
    allowed, reach = np.ones((len(types), 1), dtype=bool), 0
    if len(gold.mention_first):
        say(f"mentions: {len(gold.mention_first)} in {int(gold.mentions_T.sum())} labelled words")
        rows = np.hstack([train.rows, trigger_context(text, train.words, *read)])
        taggers = [_fit_mention(train, rows, gold.mentions_T & (half_T != h)) for h in (0, 1)]
        mentions = [_fit_mention(train, rows, gold.mentions_T, taggers), *taggers]
        half_M = half_T[gold.mention_first]
        sorts = [_fit_mention_type(train, _but(half_M, part)) for part in parts]
        if gold.role_G:
            posteriors = [tagger.posterior(rows, text.first_Q) for tagger in taggers]
            pairs = _role_pairs(train, types, posteriors, half_T, sorts[0])
            say(f"roles: {len(gold.role_G)} arguments, {len(pairs.role_P)} pairs, {len(pairs.labels) - 1} roles")
            roles = [_fit_role(pairs, _but(pairs.half_P, part)) for part in parts]
            allowed, reach = pairs.allowed, pairs.reach
    plain = Calibration((1.0, 1.0), 0.0)
    single = Calibration((1.0,), 0.0)
    models = [
        LinearExtractor(trigger, kind, mention, sort, role, allowed, reach, plain, single, plain, floors)
        for trigger, kind, mention, sort, role in zip(triggers, kinds, mentions, sorts, roles, strict=False)
    ]
    if not len(held_out.gold.event_first):
        return models
    say(f"calibration: {len(held_out.gold.event_first)} events")
    return [
        calibrate(model, model.analyse_words(held_out.text, held_out.words, held_out.rows), held_out.gold)
        for model in models
    ]


def _but(half_N: Ints, part: int | None) -> Ints:
    """Indices of the items that are not of a half; all of them for None."""
    return np.flatnonzero(half_N != part) if part is not None else np.arange(len(half_N))


def _halves(text: Text) -> Ints:
    """0 or 1 for every token, by window."""
    half = {window: fold_of(window) for window in dict.fromkeys(text.window_ids)}
    return np.array([half[window] for window in text.window_ids], dtype=np.int64)[text.doc_T]


def _fit_trigger(train: Corpus, kept_T: NDArray[np.bool_], start: Sequence[Tagger] = ()) -> Tagger:
    gold, text = train.gold, train.text
    tags = tags_of(text.size, gold.event_first, gold.event_last)
    first_Q, rows, tags = restrict(text.first_Q, kept_T, lexical_rows(train.rows), tags)
    longest = _longest(gold.event_first, gold.event_last, LONGEST_TRIGGER)
    return fit_tagger(rows, tags, first_Q, L2_TRIGGER, ROUNDS, longest, start=start)


def _fit_type(train: Corpus, types: tuple[str, ...], used_E: Ints) -> Classifier:
    gold = train.gold
    rows = type_rows(train.text, train.words, gold.event_first[used_E], gold.event_last[used_E])
    index = {name: i for i, name in enumerate(types)}
    target = np.array([index[gold.event_type[i]] for i in used_E.tolist()], dtype=np.int64)
    return fit_classifier(rows, target, types, L2_TYPE, ROUNDS, groups=_families(types))


def _families(types: tuple[str, ...]) -> list[int]:
    """The number of every type's family; none at all where each type is a family of its own."""
    index = {name: i for i, name in enumerate(dict.fromkeys(family_of(kind) for kind in types))}
    return [index[family_of(kind)] for kind in types] if len(index) < len(types) else []


def _longest(first: Ints, last: Ints, most: int) -> int:
    return int(min(most, (last - first).max(initial=0) + 1))


def _read_triggers(train: Corpus, halves: list[Tagger], half_T: Ints) -> tuple[Ints, Ints, Floats]:
    """Triggers of the train documents (first, last, probability), each read by the model of the other half."""
    text, rows = train.text, lexical_rows(train.rows)
    parts = []
    for h, tagger in enumerate(halves):
        first, last, p = list_spans(tagger.posterior(rows, text.first_Q), text.first_Q, TRIGGER_FLOOR, tagger.longest)
        use = choose(first, last, p)
        use = use[half_T[first[use]] == h]
        parts.append((first[use], last[use], p[use]))
    first, last, p = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(first, kind="stable")
    return first[order], last[order], p[order]


def _fit_mention(train: Corpus, rows: Rows, kept_T: NDArray[np.bool_], start: Sequence[Tagger] = ()) -> Tagger:
    gold, text = train.gold, train.text
    tags = tags_of(text.size, gold.mention_first, gold.mention_last)
    first_Q, kept, tags = restrict(text.first_Q, kept_T, rows, tags)
    longest = _longest(gold.mention_first, gold.mention_last, LONGEST_MENTION)
    return fit_tagger(kept, tags, first_Q, L2_MENTION, ROUNDS, longest, start=start)


def _fit_mention_type(train: Corpus, used_M: Ints) -> Classifier | None:
    gold = train.gold
    labels = tuple(sorted({kind for kind in gold.mention_type if kind is not None}))
    if len(labels) < 2:
        return None
    typed = np.array([i for i in used_M.tolist() if gold.mention_type[i] is not None], dtype=np.int64)
    names = [str(gold.mention_type[i]) for i in typed.tolist()]
    index = {name: i for i, name in enumerate(labels)}
    rows = span_rows(train.words, gold.mention_first[typed], gold.mention_last[typed])
    return fit_classifier(rows, np.array([index[name] for name in names]), labels, L2_TYPE, ROUNDS)


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """What role models are fitted on. P training items.

    Args:
        labels: roles, "takes no part" first.
        rows: features of the items.
        role_P: right label.
        allowed_P: [P, labels] roles that the item's event type may take.
        half_P: half of the train windows.
        allowed: [types, labels].
        reach: in sentences.
    """

    labels: tuple[str, ...]
    rows: Rows
    role_P: Ints
    allowed_P: Mask
    half_P: Ints
    allowed: Mask
    reach: int


def _role_pairs(
    train: Corpus, types: tuple[str, ...], posteriors: list[Posterior], half_T: Ints, mention_type: Classifier | None
) -> Pairs:
    gold, text = train.gold, train.text
    labels = ("", *sorted(set(gold.role_G)))
    role_index, type_index = ({name: i for i, name in enumerate(names)} for names in (labels, types))
    kind_E = np.array([type_index[name] for name in gold.event_type], dtype=np.int64)
    role_G = np.array([role_index[name] for name in gold.role_G], dtype=np.int64)
    allowed = _allowed(types, len(labels), kind_E[gold.event_G], role_G)
    # A window without any mention may simply lack their annotation: its events teach no role, and no absence of one.
    known_E = np.flatnonzero(gold.mentions_T[gold.event_first])
    hops = np.abs(text.sentence_T[gold.event_first[gold.event_G]] - text.sentence_T[gold.mention_first[gold.mention_G]])
    reach = int(min(REACH, hops.max(initial=0)))
    first, last = _mention_pool(train, posteriors, half_T)
    p = np.zeros(len(first))
    for h, posterior in enumerate(posteriors):
        own = half_T[first] == h
        p[own] = safe_span_probabilities(text, posterior, first[own], last[own])
    sort = hash_names("sort", _sorts(train, first, last, mention_type))
    events = Spans(
        gold.event_first[known_E], gold.event_last[known_E], hash_names("type", types)[kind_E[known_E]],
        hash_names("type", [family_of(name) for name in types])[kind_E[known_E]],
        np.zeros(len(known_E), dtype=np.int64),
    )  # fmt: skip
    mentions = Spans(first, last, sort, sort, steps_of(p))
    event_P, mention_P = list_pairs(text, events, mentions, reach)
    pair, role = _targets(gold, first, last, known_E[event_P], mention_P, role_G)
    event_P, mention_P = event_P[pair], mention_P[pair]
    rows = pair_rows(text, train.words, events, mentions, event_P, mention_P)
    half_P = half_T[gold.event_first[known_E[event_P]]]
    return Pairs(labels, rows, role, allowed[kind_E[known_E[event_P]]], half_P, allowed, reach)


def _fit_role(pairs: Pairs, used_P: Ints) -> Classifier:
    return fit_classifier(
        pairs.rows[used_P], pairs.role_P[used_P], pairs.labels, L2_ROLE, ROUNDS, allowed=pairs.allowed_P[used_P]
    )


def _allowed(types: tuple[str, ...], roles: int, kind_G: Ints, role_G: Ints) -> Mask:
    """Roles seen with a type or with another type of its family; "takes no part" is always possible."""
    families = {name: i for i, name in enumerate(dict.fromkeys(family_of(kind) for kind in types))}
    family = np.array([families[family_of(kind)] for kind in types], dtype=np.int64)
    seen = np.zeros((len(families), roles), dtype=bool)
    seen[family[kind_G], role_G] = True
    own = np.zeros((len(types), roles), dtype=bool)
    own[kind_G, role_G] = True
    # Only fine-grained ontologies (three parts and more) share roles within a family.
    shared = np.array([kind.count(".") >= 2 for kind in types], dtype=bool)
    allowed: Mask = own | (seen[family] & shared[:, None])
    allowed[:, NO_ROLE] = True
    return allowed


def _mention_pool(train: Corpus, posteriors: list[Posterior], half_T: Ints) -> tuple[Ints, Ints]:
    """Gold mentions and found ones that are not gold, by first token."""
    gold, text = train.gold, train.text
    spans = set(zip(gold.mention_first.tolist(), gold.mention_last.tolist(), strict=True))
    longest = _longest(gold.mention_first, gold.mention_last, LONGEST_MENTION)
    for h, posterior in enumerate(posteriors):
        first, last, p = list_spans(posterior, text.first_Q, MENTION_FLOOR, longest)
        use = choose(first, last, p)
        use = use[half_T[first[use]] == h]
        spans |= set(zip(first[use].tolist(), last[use].tolist(), strict=True))
    pool = np.array(sorted(spans), dtype=np.int64).reshape(-1, 2)
    return pool[:, 0], pool[:, 1]


def _sorts(train: Corpus, first: Ints, last: Ints, mention_type: Classifier | None) -> list[str]:
    if mention_type is None:
        return [""] * len(first)
    best = mention_type.probabilities(span_rows(train.words, first, last)).argmax(axis=1)
    return [mention_type.labels[i] for i in best.tolist()]


def _targets(gold: Gold, first: Ints, last: Ints, event_P: Ints, mention_P: Ints, role_G: Ints) -> tuple[Ints, Ints]:
    """(index of the pair, role) of every training item: a pair with two roles occurs twice, one with none once.

    A found mention that overlaps a gold filler by half (in words) counts as that filler.
    """
    fillers: dict[int, list[tuple[int, int, int]]] = {}
    for event, mention, role in zip(gold.event_G.tolist(), gold.mention_G.tolist(), role_G.tolist(), strict=True):
        span = int(gold.mention_first[mention]), int(gold.mention_last[mention])
        fillers.setdefault(event, []).append((*span, role))
    pairs, roles = [], []
    for pair, (event, mention) in enumerate(zip(event_P.tolist(), mention_P.tolist(), strict=True)):
        a, b = int(first[mention]), int(last[mention])
        found = []
        for c, d, role in fillers.get(event, ()):
            shared = min(b, d) - max(a, c) + 1
            if shared > 0 and 2 * shared >= max(b, d) - min(a, c) + 1:
                found.append(role)
        for role in sorted(set(found)) or [NO_ROLE]:
            pairs.append(pair)
            roles.append(role)
    return np.array(pairs, dtype=np.int64), np.array(roles, dtype=np.int64)
