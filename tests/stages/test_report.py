"""The report: self-contained, safe with hostile text, every link leads somewhere, and the marked text is the text."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import files, tables
from pipeline.params import Params
from pipeline.spans import Span
from stages.audit.__main__ import main as audit
from stages.report import charts, readings
from stages.report.__main__ import interval, main, number, signed
from stages.report.passages import FOLD_ABOVE, passage, shown
from tests import tiny
from tests.builders import document

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=y>"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects what the tests ask about, and whether tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for _, attrs in self.tags if attribute in attrs]


def params(source: str = "sample", windows: int = 3) -> Params:
    raw = tiny.params().model_dump(by_alias=True)
    raw["ingest"]["source"] = source
    raw["report"]["windows"] = windows
    return Params.model_validate(raw)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with audited tiny tables."""
    tiny.write(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    files.write_json("data/reward/theta.json", [
        {"feature": "filled_weight", "group": "skeleton", "theta": 0.4, "low": 0.1, "high": 0.7, "sign": "+"},
    ])  # fmt: skip
    files.write_json("data/reward/calibration.json", [])
    return tmp_path / "data"


def build(data: Path, params_: Params) -> str:
    audit(params_)
    main(params_)
    return (data / "report/index.html").read_text(encoding="utf-8")


def check_safe(page: Page, text: str) -> None:
    """Self-contained, script-free, and the policy allows exactly the style it holds."""
    assert not {"script", "iframe", "object", "embed", "form", "base", "link", "img"} & {tag for tag, _ in page.tags}
    attributes = {name for _, attrs in page.tags for name in attrs}
    assert not {name for name in attributes if name.startswith("on")} | (attributes & {"style", "src", "srcset"})
    assert all(href.startswith("#") for href in page.values("href"))
    policy = next(a["content"] or "" for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "unsafe" not in policy and "default-src 'none'" in policy
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None and "url(" not in style[1] and "@import" not in style[1]
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy


def test_page_is_self_contained_and_every_link_leads_somewhere(data: Path) -> None:
    text = build(data, params())
    page = Page(text)
    check_safe(page, text)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {href[1:] for href in page.values("href")} <= set(ids)
    quotes = [a for tag, a in page.tags if tag == "a" and (a.get("title") or "").startswith("w2:doc-1:")]
    assert len(quotes) == 4, "four cited spans of Ann's certificate"
    assert "Synthetic data." in page.text and "Oracle cap" in page.text and "certified" in page.text


def test_hostile_text_stays_text(data: Path) -> None:
    tiny.change(data, "ingest/documents", pl.lit(HOSTILE).alias("title"))
    tiny.change(data, "trajectories/skeletons", pl.lit(HOSTILE).alias("title"))
    for setting in tables.SETTINGS:
        tiny.change(data, f"roster/{setting}/candidates", pl.lit(HOSTILE + "\x00\x1b[31m").alias("name"))
    text = build(data, params("casie"))
    page = Page(text)
    check_safe(page, text)
    assert HOSTILE in page.text and HOSTILE not in text
    assert "\x00" not in text and "\x1b" not in text
    assert "Synthetic" not in page.text and "comparable with a published one" in page.text


def test_same_audit_same_bytes(data: Path) -> None:
    first = build(data, params())
    main(params())
    assert (data / "report/index.html").read_text(encoding="utf-8") == first


def test_without_gold_nothing_is_said_about_right_or_wrong(data: Path) -> None:
    for name in ("instances", "grades", "mapping", "sufficient"):
        tables.write(f"reference/audit/{name}", tables.table(f"reference/audit/{name}").empty(), data)
    tables.write("ingest/roster", tables.table("ingest/roster").empty(), data)
    page = Page(build(data, params("jsonl")))
    assert "No annotation." in page.text and "EvidCons" in page.text
    assert "Gold grade" not in page.text and "Differences from" not in page.text
    assert {href[1:] for href in page.values("href")} <= set(page.values("id"))


def test_without_annotation_the_roster_that_nobody_stands_in_is_left_out(data: Path) -> None:
    """The first roster setting is then the empty closed one: it must not hide the rankings there are."""
    for name in ("instances", "grades", "mapping", "sufficient"):
        tables.write(f"reference/audit/{name}", tables.table(f"reference/audit/{name}").empty(), data)
    tables.write("ingest/roster", tables.table("ingest/roster").empty(), data)
    tables.write("trajectories/closed/steps", tables.table("trajectories/closed/steps").empty(), data)
    for name in ("candidates", "mentions", "arguments"):
        tables.write(f"roster/closed/{name}", tables.table(f"roster/closed/{name}").empty(), data)
    for system in tiny.SYSTEMS:
        for name in ("rankings", "certificates", "generations"):
            table = f"rank/{system}/closed/{name}"
            tables.write(table, tables.table(table).empty(), data)
    tiny.change(data, "roster/windows", pl.lit(0).alias("n_closed"))
    page = Page(build(data, params("jsonl")))
    assert "Predicted" in page.text and "Closed" not in page.text
    assert "Best system, predicted roster" in page.text
    assert "Ann" in page.text and "shot" in page.text


def test_what_every_other_system_answered_is_on_the_page(data: Path) -> None:
    page = Page(build(data, params()))
    assert page.text.count("What the other systems answered") == 1
    found = readings.answers([("w2", "attack")], ["oracle", "rm_attach"], ["closed", "hybrid"])
    (by_setting,) = found.values()
    assert list(by_setting) == ["closed", "hybrid"]
    for answers in by_setting.values():
        assert [a.system for a in answers] == ["oracle", "rm_attach"]
        assert all(a.entries == (("Ann", "", 3),) for a in answers)
        assert all(a.score == pytest.approx(1.0) for a in answers)


def test_what_was_rejected_says_so_in_every_answer(data: Path) -> None:
    for setting in tables.SETTINGS:
        name = f"rank/oracle/{setting}/certificates"
        tables.write(name, tables.read(name, data).filter(pl.col("slot_id") == "none"), data)
    build(data, params())
    (by_setting,) = readings.answers([("w2", "attack")], ["oracle"], ["closed"]).values()
    (answer,) = by_setting["closed"]
    assert [(name, grade) for name, _, grade in answer.entries] == [("Ann", 3)]
    assert answer.entries[0][1] != ""
    assert answer.score == 0


def test_an_extremely_long_name_is_cut(data: Path) -> None:
    for setting in tables.SETTINGS:
        tiny.change(data, f"roster/{setting}/candidates", pl.lit("N" * 50_000).alias("name"))
    text = build(data, params())
    assert len(text) < 200_000
    assert "N" * readings.NAME + "…" in text and "N" * (readings.NAME + 1) not in text


def test_no_window_needs_to_be_shown(data: Path) -> None:
    page = Page(build(data, params(windows=0)))
    assert "None were asked for" in page.text


def test_a_split_without_windows_gives_a_page_of_dashes(data: Path) -> None:
    raw = params().model_dump(by_alias=True)
    raw["rank"]["splits"] = ["tune"]
    page = Page(build(data, Params.model_validate(raw)))
    assert {href[1:] for href in page.values("href")} <= set(page.values("id"))


def test_the_worst_is_shown_with_its_reason(data: Path) -> None:
    for setting in tables.SETTINGS:
        for system in tiny.SYSTEMS:
            name = f"rank/{system}/{setting}/certificates"
            mention = pl.col("start").is_in([tiny.find("Ann")[0], tiny.find("Ann", 1)[0]])
            tables.write(name, tables.read(name, data).filter(mention), data)
    page = Page(build(data, params()))
    assert "rejected" in page.text and "a matched slot cites no full trigger" in page.text


# ---- which rankings --------------------------------------------------------------------------------------------------


def write_instances(root: Path, values: dict[tuple[str, str], float]) -> None:
    tables.write("audit/instances", tables.table("audit/instances").frame(
        {"system": "s", "setting": "closed", "window_id": w, "intent_id": i, "metric": "cert_ndcg", "value": value}
        for (w, i), value in values.items()
    ), root)  # fmt: skip


def test_choice_spans_best_to_worst_over_different_windows(tmp_path: Path) -> None:
    values = {(f"w{i // 2:02d}", f"i{i % 2}"): i / 19 for i in range(20)}
    write_instances(tmp_path, values)
    chosen = readings.choose("s", "closed", 5, tmp_path)
    assert chosen[0] == ("w09", "i1") and chosen[-1] == ("w00", "i0")
    assert len({window for window, _ in chosen}) == 5
    assert [values[key] for key in chosen] == sorted((values[key] for key in chosen), reverse=True)
    assert chosen == readings.choose("s", "closed", 5, tmp_path)
    assert set(readings.choose("s", "closed", 99, tmp_path)) == set(values)
    assert readings.choose("another", "closed", 5, tmp_path) == []


# ---- marked text -----------------------------------------------------------------------------------------------------

TEXT = "Ann bought\na gun.\nBob saw\x07 it \N{PILE OF POO} there."


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(TEXT) - 1), st.integers(1, 12), st.integers(1, 4)), max_size=6))
def test_pieces_are_the_text_and_marks_cover_exactly_what_is_cited(raw: list[tuple[int, int, int]]) -> None:
    doc = document("d", TEXT)
    cited = [(Span("d", start, min(start + size, len(TEXT))), rank) for start, size, rank in raw]
    anchors = {span: f"a{i}" for i, span in enumerate(sorted({span for span, _ in cited}))}
    made = passage(doc, "", [*cited, (Span("elsewhere", 0, 3), 1)], anchors)
    assert "".join(piece.text for piece in made.pieces) == shown(TEXT)
    assert sorted(a for piece in made.pieces for a in piece.anchors) == sorted(anchors.values())
    at = 0
    for piece in made.pieces:
        for i in range(at, at + len(piece.text)):
            assert set(piece.ranks) == {rank for span, rank in cited if span.start <= i < span.end}
        at += len(piece.text)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 399), max_size=4))
def test_long_documents_are_folded_but_never_near_a_citation(sentences: list[int]) -> None:
    doc = document("d", "\n".join(f"Sentence number {i:04d} says little." for i in range(400)))
    assert len(doc.text) > FOLD_ABOVE
    cited = [(Span("d", *doc.sentences[i]), 1) for i in sorted(set(sentences))]
    made = passage(doc, "", cited, {span: f"a{i}" for i, (span, _) in enumerate(cited)})
    folded = sum(int(piece.note.split()[0].replace(",", "")) for piece in made.pieces if piece.note)
    assert folded + sum(len(piece.text) for piece in made.pieces) == len(doc.text)
    assert folded > 0
    text = "".join(piece.text for piece in made.pieces)
    for i in sentences:
        assert all(f"number {j:04d} " in text for j in range(max(0, i - 3), min(400, i + 4)))


def test_control_characters_are_shown_as_pictures() -> None:
    assert shown("a\x00\x1b\x7f\n\tb") == "a\u2400\u241b\u2421\n\tb"
    assert shown("a\u202eb\u2066c\x9b") == "a\ufffdb\ufffdc\ufffd"


def test_no_control_character_of_an_id_or_a_title_reaches_the_page(data: Path) -> None:
    hostile = "\x1b[2J\x07\u202e\x9b"
    tiny.change(data, "ingest/documents", pl.lit("T" + hostile).alias("title"))
    tiny.change(data, "trajectories/skeletons", pl.lit("Q" + hostile).alias("title"))
    text = build(data, params())
    page = Page(text)
    assert not {c for c in text if not c.isprintable()} - {"\n"}
    assert "T\u241b[2J\u2407" in page.text and "Q\u241b[2J\u2407" in page.text


# ---- charts and numbers ----------------------------------------------------------------------------------------------


def figure(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 3}


def test_charts_stay_inside_their_frame_and_escape_their_labels() -> None:
    cells = {"ndcg": figure(1.7), "cert_ndcg": figure(0.5, -0.2, 1.2), "cert_ndcg_gold": figure(None)}
    made = str(charts.level_bar(cells, 0.9, None, '<b>"x"</b>'))
    assert "<b>" not in made and "mark-cap" in made and "mark-floor" not in made and "bar-cert-ndcg-gold" not in made
    assert all(0 <= float(p) <= 100 for p in re.findall(r'"([\d.]+)%"', made))
    assert "below" in str(charts.forest_row(figure(-0.2, -0.3, -0.1), None, 0.5, "x"))
    assert "level" in str(charts.forest_row(figure(0.0, -0.1, 0.1), figure(None), 0.5, "x"))


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=5))
def test_the_axis_holds_every_figure(values: list[float]) -> None:
    limit = charts.symmetric_limit([figure(v, v - 0.1, v + 0.1) for v in values])
    assert all(abs(v) + 0.1 <= limit + 1e-9 for v in values)


def test_line_labels_keep_their_distance() -> None:
    made = str(charts.line_chart({f"s{i}": [(0.0, 0.5), (1.0, 0.5 + i / 1000)] for i in range(6)}, "x", "label"))
    heights = [float(y) for y in re.findall(r'<text x="[\d.]+" y="([\d.]+)" class="end', made)]
    assert len(heights) == 6
    ordered = sorted(heights)
    assert all(b - a >= 13.9 for a, b in pairwise(ordered))
    assert charts.line_chart({}, "x", "label") == ""


def test_numbers_as_text() -> None:
    assert number(None) == "–" and number(-0.12345) == "−0.123" and number(123.45) == "123.5"
    assert signed(0.1) == "+0.100" and signed(-0.1) == "−0.100" and signed(None) == "–"
    assert interval(figure(0.5, 0.25, 0.75)) == "0.250 to 0.750" and interval(figure(None)) == ""
