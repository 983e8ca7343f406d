"""The synthetic corpus: invariants, splits, what the knobs do, and that the intents fit its plans."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline import tables
from pipeline.errors import ParamError
from pipeline.skeletons import align, grade, load_intents
from stages.ingest import generator
from stages.ingest.lexicon import load_lexicon
from stages.ingest.records import Window
from stages.ingest.story import write_story
from tests.stages.ingesting import ROOT, check_invariants, gold, ingest, params_for, texts

SAMPLE = ROOT / "stages/ingest/sample"
_LEXICON = load_lexicon(SAMPLE)


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_sample_holds_the_invariants_and_is_called_synthetic() -> None:
    summary = ingest("sample", SAMPLE, sample={"windows": 40})
    check_invariants()
    documents = tables.read("ingest/documents")
    assert documents.height == 120
    assert documents["title"].str.contains("(synthetic)", literal=True).all()
    rosters = tables.read("ingest/roster").partition_by("window_id")
    assert len(rosters) == 40
    assert all(8 <= len(set(roster["entity_id"])) <= 16 for roster in rosters)
    assert gold("labelled").height == sum(summary["rows"]["sentences"].values())


def test_a_larger_sample_contains_the_smaller_one() -> None:
    params = params_for("sample", SAMPLE)
    lexicon, knobs = load_lexicon(SAMPLE), params.ingest.sample
    ingest("sample", SAMPLE, sample={"windows": 5})
    small = texts()
    ingest("sample", SAMPLE, sample={"windows": 9})
    assert small.items() <= texts().items()
    again = generator.generate_window(3, lexicon, knobs, params.seed)
    assert all(small[d.doc_id] == d.text for d in again.documents)
    other = generator.generate_window(3, lexicon, knobs, params.seed + 1)
    assert other.documents[0].text != again.documents[0].text


def sample_windows(count: int = 60, **knobs: Any) -> list[Window]:
    params = params_for("sample", SAMPLE, sample=knobs)
    lexicon = load_lexicon(SAMPLE)
    return [generator.generate_window(i, lexicon, params.ingest.sample, params.seed) for i in range(count)]


def test_sample_splits_are_near_62_13_25() -> None:
    counts = Counter(generator.split_of(f"affair-{i:07d}") for i in range(5000))
    assert counts["train"] / 5000 == pytest.approx(0.62, abs=0.03)
    assert counts["tune"] / 5000 == pytest.approx(0.13, abs=0.02)
    assert set(counts) == {"train", "tune", "test"}


def test_intents_grade_the_plans_that_were_written() -> None:
    """Every plan has its intent; the main follower of a window gets grade 3, and all four grades occur."""
    intents = {intent.intent_id: intent.skeleton for intent in load_intents(ROOT / "intents/sample")}
    lexicon = load_lexicon(SAMPLE)
    assert sorted(intents) == sorted(plan.name for plan in lexicon.plans)
    for plan in lexicon.plans:
        slots = intents[plan.name].slots
        climax = plan.steps[plan.climax][0]
        assert [(s.types, s.roles) for s in slots if s.climax] == [((climax[0],), (climax[1],))]
        assert all(any(s.fits(*option) for s in slots) for step in plan.steps for option in step)
        (part,) = (s for s in slots if "*" in s.roles)
        assert part.types == (climax[0],)
        assert not part.fits(*climax)
        assert min(s.weight for s in slots) > 100_000
    grades: Counter[int] = Counter()
    for window in sample_windows(30):
        acts: dict[str, set[tuple[str, str, str]]] = {}
        for d in window.documents:
            entity = {m.mention_id: m.entity_id for m in d.mentions}
            event = {e.event_id: (e.chain_id, e.type) for e in d.events}
            for a in d.arguments:
                acts.setdefault(entity[a.mention_id], set()).add((*event[a.event_id], a.role))
        by_intent = [[grade(s, align(s, sorted(steps))) for steps in acts.values()] for s in intents.values()]
        assert any(max(row) == 3 for row in by_intent)
        grades.update(g for row in by_intent for g in row)
    assert all(grades[g] > 0 for g in range(4))


def test_knobs_do_what_they_say() -> None:
    def events(windows: list[Window]) -> int:
        return sum(len(d.events) for w in windows for d in w.documents)

    def shared_triggers(windows: list[Window]) -> float:
        types: dict[str, set[str]] = {}
        for w in windows:
            for d in w.documents:
                for e in d.events:
                    types.setdefault(d.text[e.start : e.end], set()).add(e.type)
        return sum(len(kinds) > 1 for kinds in types.values()) / len(types)

    def aliases(windows: list[Window]) -> float:
        names = [len({d.text[m.start : m.end] for d in w.documents for m in d.mentions}) for w in windows]
        return sum(names) / len(names)

    def candidates(windows: list[Window]) -> float:
        return sum(len({m.entity_id for d in w.documents for m in d.mentions}) for w in windows) / len(windows)

    def remote(windows: list[Window]) -> float:
        far = total = 0
        for w in windows:
            for d in w.documents:
                mention = {m.mention_id: m for m in d.mentions}
                event = {e.event_id: e for e in d.events}
                for a in d.arguments:
                    holds = next(s for s in d.sentences if s[0] <= event[a.event_id].start < s[1])
                    far += not holds[0] <= mention[a.mention_id].start < holds[1]
                    total += 1
        return far / total

    usual = sample_windows()
    assert remote(sample_windows(remote_arguments=0.0, corrections=0.0)) == 0
    assert 0.02 < remote(sample_windows(remote_arguments=0.0)) < remote(usual) - 0.03 < 0.2
    assert shared_triggers(sample_windows(ambiguous_triggers=0.0)) < 0.02 < shared_triggers(usual)
    assert aliases(sample_windows(aliases=0.0)) < aliases(usual) - 3
    assert candidates(sample_windows(distractors=2)) < candidates(usual) - 1
    assert events(sample_windows(plan_steps=2)) < events(usual) - 60
    assert events(sample_windows(repeats=0.0)) < events(usual) - 60
    assert {len(w.documents) for w in sample_windows(5, documents=6)} == {6}
    noisy, quiet = sample_windows(noise=2.0), sample_windows(noise=0.0)
    assert events(noisy) == pytest.approx(events(quiet), rel=0.1)
    assert sum(len(d.sentences) for w in noisy for d in w.documents) > 1.5 * sum(
        len(d.sentences) for w in quiet for d in w.documents
    )


EASY = {
    "role_swaps": 0.0, "aliases": 0.0, "shared_surnames": 0.0, "out_of_order": 0.0, "remote_arguments": 0.0,
    "ambiguous_triggers": 0.0, "ambiguous_roles": 0.0, "corrections": 0.0, "novelty": 0.0, "unreal": 0.0,
    "hidden_cues": 0.0, "disputed": 0.0,
}  # fmt: skip
"""The easy setting of docs/sample.md."""


def told(windows: list[Window]) -> list[tuple[str, str, str, dict[str, str], list[str]]]:
    """Per event mention: split, trigger, its sentence, role -> what fills it, the two sentences after."""
    out = []
    for w in windows:
        for d in w.documents:
            surface = {m.mention_id: d.text[m.start : m.end] for m in d.mentions}
            sentences = [d.text[a:b] for a, b in d.sentences]
            for e in d.events:
                at = next(i for i, (a, b) in enumerate(d.sentences) if a <= e.start < b)
                roles = {a.role: surface[a.mention_id] for a in d.arguments if a.event_id == e.event_id}
                out.append((w.split, d.text[e.start : e.end], sentences[at], roles, sentences[at + 1 : at + 3]))
    return out


def test_novelty_is_kept_from_the_train_split() -> None:
    triggers = {
        novel: {
            form[form.index("[") + 1 : form.index("]")].casefold()
            for t in _LEXICON.types.values() for w in t.wordings if w.novel == novel for form in w.forms.values()
        }
        for novel in (False, True)
    }  # fmt: skip
    assert not triggers[False] & triggers[True]
    for novelty, splits in ((0.0, ()), (1.0, ("tune", "test"))):
        for split, trigger, *_ in told(sample_windows(novelty=novelty)):
            assert trigger.casefold() in triggers[split in splits]
    some = [trigger.casefold() in triggers[True] for split, trigger, *_ in told(sample_windows()) if split == "test"]
    assert 0.3 < sum(some) / len(some) < 0.6


def test_unreal_events_are_told_like_real_ones_but_for_a_verdict() -> None:
    """A verdict occurs with both outcomes; the sentence it is about holds an event only if it happened."""
    counts: Counter[tuple[bool, bool]] = Counter()
    for window in sample_windows(hidden_cues=1.0, disputed=1.0, unreal=1.0, noise=0.0):
        for d in window.documents:
            holds = [any(a <= e.start < b for e in d.events) for a, b in d.sentences]
            texts = [d.text[a:b] for a, b in d.sentences]
            for i, text in enumerate(texts):
                for word, happened in (("retracted", False), ("confirmed", True)):
                    if text.startswith(f"The paper has since {word}"):
                        # A sentence that tells the event type, or who acted, may stand between.
                        counts[happened, any(holds[max(i - 3, 0) : i]) if happened else holds[i - 1]] += 1
                for word, happened in (("false", False), ("true", True)):
                    if text == f"What comes next was printed last week and is {word}.":
                        counts[happened, any(holds[i + 1 : i + 2])] += 1
    assert counts[True, True] > 20 < counts[False, False]
    assert counts[True, False] == counts[False, True] == 0
    easy = [d.text for w in sample_windows(**EASY) for d in w.documents]
    assert not any(word in text for text in easy for word in ("denied", "retracted", "confirmed this", "Correction"))


def test_corrections_name_who_is_meant() -> None:
    seen = 0
    for _, _, sentence, roles, after in told(sample_windows(corrections=1.0, aliases=0.0)):
        if after and after[0].startswith("For ") and " read " in after[0]:
            wrong, right = after[0].removeprefix("For ").removesuffix(" in the sentence before.").split(" read ")
            actor = next(iter(roles.values()))
            assert right.removeprefix("the ") == actor
            assert wrong.removeprefix("the ").casefold() in sentence.casefold()
            seen += 1
    assert seen > 50


def test_the_former_is_the_one_named_first() -> None:
    seen = Counter[str]()
    for _, _, sentence, roles, after in told(sample_windows(ambiguous_roles=1.0)):
        if " involved " in sentence:
            said = sentence if "responsible for it" in sentence else after[0]
            word = said.removesuffix(".").split()[-1]
            actor, other = roles.values()
            assert (sentence.casefold().index(actor.casefold()) < sentence.rindex(other)) == (word == "former")
            seen[word] += 1
    assert min(seen["former"], seen["latter"]) > 20


def test_story_knobs() -> None:
    def stories(**knobs: Any) -> list[Any]:
        params = params_for("sample", SAMPLE, sample=knobs)
        return [write_story(_LEXICON, params.ingest.sample, generator.Random(i)) for i in range(40)]

    def swapped(story: Any) -> bool:
        return any(
            (h.type.name, h.b, h.a) in {(o.type.name, o.a, o.b) for o in story.happenings} for h in story.happenings
        )

    def namesakes(story: Any) -> bool:
        people = [p.short for p in story.cast if p.kind in ("figure", "official")]
        return len(set(people)) < len(people)

    assert not any(map(swapped, stories(role_swaps=0.0)))
    assert all(map(swapped, stories(role_swaps=1.0)))
    assert not any(map(namesakes, stories(shared_surnames=0.0)))
    assert sum(map(namesakes, stories(shared_surnames=1.0))) > 35
    assert not any(story.shuffled for story in stories(out_of_order=0.0))
    assert all(len(story.shuffled) == 5 for story in stories(out_of_order=1.0))
    assert not any(story.rumours for story in stories(unreal=0.0))
    assert all(len(story.rumours) == 2 * len(story.happenings) for story in stories(unreal=2.0))
    for story in stories(unreal=1.0):
        real = {(h.type.name, frozenset((h.a, h.b))) for h in story.happenings}
        assert not any((r.type.name, frozenset((r.a, r.b))) in real for r in story.rumours)
        assert [h.key for h in (*story.happenings, *story.rumours)] == list(range(2 * len(story.happenings)))
    for story in stories():
        assert [h.day for h in story.happenings] == sorted({h.day for h in story.happenings})
        assert all(h.a != h.b for h in story.happenings)


def test_relations_follow_the_story() -> None:
    for number in range(20):
        params = params_for("sample", SAMPLE, sample={"out_of_order": 1.0})
        random = generator.Random(generator.stable_seed(params.seed, "sample", number))
        story = write_story(_LEXICON, params.ingest.sample, random)
        window = generator.generate_window(number, _LEXICON, params.ingest.sample, params.seed)
        day = {f"{window.window_id}#c{h.key}": h.day for h in story.happenings}
        chain = {e.event_id: e.chain_id for d in window.documents for e in d.events}
        assert window.relations
        assert all(day[chain[r.head]] < day[chain[r.tail]] for r in window.relations)


@pytest.mark.parametrize(("file", "old", "new", "message"), [
    ("events.yaml", "wire/wired/wired/wiring", "wire/wired", r"events\.yaml: finance\.transfer: malformed wording"),
    ("events.yaml", "whom: [firm]", "whom: [moon]", "needs two roles and known kinds"),
    ("events.yaml", "remit/remitted/remitted/remitting | a sum | to", "remit | a sum", "malformed wording"),
    ("events.yaml", "    - fete/feted/feted/feting\n    - laud/lauded/lauded/lauding\n", "", "a novel one"),
    ("events.yaml", "roles:", "rules:", r"events\.yaml: finance\.transfer\.\w+"),
    ("plans.yaml", "founder]", "finder]", r"plans\.yaml: bribery: unknown step"),
    ("plans.yaml", "bribery:", "bribery: [", "not valid YAML"),
])  # fmt: skip
def test_broken_word_lists(file: str, old: str, new: str, message: str) -> None:
    shutil.copytree(SAMPLE, "words")
    path = Path("words") / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ParamError, match=message):
        load_lexicon("words")
