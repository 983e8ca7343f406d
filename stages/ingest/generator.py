"""The synthetic news corpus: seeded affairs, told by several reports each, with gold annotation by construction.

A window is an affair (`story.py`), its documents are reports of it (`telling.py`), its difficulty is set by the knobs
under `ingest.sample` in params.yaml. Every window has a generator of its own, seeded by its number, so window 17 is the
same whether 20 or 100,000 are generated, and nothing is kept between windows. Splits by sha256 of the window's id,
about 62/13/25. Titles call every report synthetic.

Gold: all name mentions (pronouns excluded), event mentions that corefer across reports, arguments, and BEFORE between
events that a connective orders and between consecutive events of one candidate's plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from random import Random

from pipeline.params import Params, Sample
from pipeline.stage import progress
from pipeline.windows import stable_seed
from stages.ingest.lexicon import Lexicon, load_lexicon
from stages.ingest.lines import Index
from stages.ingest.page import Report
from stages.ingest.problems import Problems
from stages.ingest.records import Argument, Document, Event, Mention, Relation, Window, check_document, check_window
from stages.ingest.story import Story, write_story
from stages.ingest.telling import tell_story

SPLIT_ENDS = ((0.62, "train"), (0.75, "tune"), (1.0, "test"))


def windows(params: Params, index: Index, problems: Problems) -> Iterator[Window]:
    """The synthetic corpus; `index` and `problems` are not needed."""
    lexicon = load_lexicon(params.ingest.path)
    knobs = params.ingest.sample
    for number in progress(range(knobs.windows), "ingest", knobs.windows):
        yield generate_window(number, lexicon, knobs, params.seed)


def generate_window(number: int, lexicon: Lexicon, knobs: Sample, seed: int) -> Window:
    """Window `number` (from 0) of the corpus with this seed."""
    window_id = f"affair-{number:07d}"
    random = Random(stable_seed(seed, "sample", number))
    story = write_story(lexicon, knobs, random)
    novelty = 0.0 if split_of(window_id) == "train" else knobs.novelty
    reports = tell_story(story, lexicon, knobs, novelty, random)
    documents = [_document(window_id, i, story, report) for i, report in enumerate(reports)]
    kinds = {f"{window_id}#p{p.key}": p.kind for p in story.cast}
    window = Window(
        window_id, split_of(window_id), documents, entity_types=kinds, relations=_relations(window_id, story, reports)
    )
    for document in documents:
        check_document(document)
    check_window(window)
    return window


def split_of(window_id: str) -> str:
    """train, tune or test, by the sha256 of the id."""
    share = int.from_bytes(hashlib.sha256(window_id.encode()).digest()[:8], "big") / 2**64
    return next(split for end, split in SPLIT_ENDS if share < end)


def _document(window_id: str, number: int, story: Story, report: Report) -> Document:
    doc_id = f"{window_id}.{number + 1}"
    names = {span: f"{doc_id}#m{i}" for i, span in enumerate(sorted(report.mentions))}
    mentions = [
        Mention(names[span], f"{window_id}#p{key}", *span, type=story.cast[key].kind)
        for span, key in sorted(report.mentions.items())
    ]
    events, arguments = [], []
    for i, told in enumerate(report.told):
        happening, event_id = told.happening, f"{doc_id}#e{i}"
        kind = happening.type
        events.append(Event(event_id, f"{window_id}#c{happening.key}", told.start, told.end, kind.name, "Actual"))
        arguments.append(Argument(event_id, names[told.a], kind.roles[0]))
        arguments.append(Argument(event_id, names[told.b], kind.roles[1]))
    return Document(
        doc_id, report.text, tuple(report.sentences), title=report.title, date=report.date,
        labelled=range(len(report.sentences)), mentions=mentions, events=events, arguments=arguments,
    )  # fmt: skip


def _relations(window_id: str, story: Story, reports: list[Report]) -> list[Relation]:
    """BEFORE: told orders within a report; consecutive events of a plan, in one report where both stand in one."""
    pairs: set[tuple[str, str]] = set()
    places: dict[int, dict[int, str]] = {}
    for number, report in enumerate(reports):
        ids = [f"{window_id}.{number + 1}#e{i}" for i in range(len(report.told))]
        pairs |= {(ids[i], ids[j]) for i, j in report.orders}
        for event_id, told in zip(ids, report.told, strict=True):
            places.setdefault(told.happening.key, {})[number] = event_id
    last: dict[int, int] = {}
    for happening in story.happenings:
        if happening.thread is None:
            continue
        if happening.thread in last:
            early, late = places[last[happening.thread]], places[happening.key]
            shared = sorted(early.keys() & late.keys())
            pairs |= {(early[n], late[n]) for n in shared} or {(early[min(early)], late[min(late)])}
        last[happening.thread] = happening.key
    return [Relation(head, tail, "BEFORE") for head, tail in sorted(pairs)]
