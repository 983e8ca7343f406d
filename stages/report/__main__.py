"""Stage `report`: one self-contained HTML page about an audit: what was found, how sure it is, and the evidence itself.

The page holds everything it needs, runs no script, asks nothing of the network, and forbids both by its content
security policy. All text of the corpus is escaped. It reads the audit's figures, and for `report.windows` instances,
spread evenly from the best to the worst, the ranking of the best system with the cited text highlighted, and in short
what every other system answered in every roster setting.

Writes data/report/index.html. Run it with `dvc repro report`, or alone with

    python -m stages.report
"""

from __future__ import annotations

import base64
import hashlib
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline import files, tables
from pipeline.params import Params
from pipeline.skeletons import intents_from_table
from pipeline.stage import run
from pipeline.tables import Reader
from stages.report import charts, readings, words
from stages.report.passages import shown
from stages.report.sections import Audit, contents

HERE = Path(__file__).parent
PAGE = Path("data/report/index.html")
AUDIT = Path("data/audit")
SOURCES = ("metrics", "differences", "counterfactuals", "sweep", "extraction", "policies", "summary")


def main(params: Params) -> None:
    """Render the page."""
    audit = Audit(
        **{name: files.read_json(AUDIT / f"{name}.json") for name in SOURCES},
        theta=files.read_json("data/reward/theta.json"),
        calibration=files.read_json("data/reward/calibration.json"),
        settings=tuple(s for s in tables.SETTINGS if s in params.roster.settings),
    ).judged()
    intents = {intent.intent_id: intent for intent in intents_from_table(tables.read("trajectories/skeletons"))}
    setting = audit.settings[0]
    keys = readings.choose(audit.best, setting, params.report.windows)
    context = contents(audit, params) | {
        "readings": readings.read(keys, audit.best, setting, intents, params),
        "answers": readings.answers(keys, audit.systems, audit.settings),
        "reading_setting": setting,
        "intents": sorted(intents.values(), key=lambda intent: intent.intent_id),
        "hashes": hashes(),
    }
    page = render(context)
    files.write_text(PAGE, page)
    print(f"  {PAGE}: {len(page) / 1e6:.1f} MB, {len(keys)} rankings shown", file=sys.stderr)


def hashes() -> dict[str, str]:
    """What the page was made from: sha256 of the corpus' texts taken together, and of the audit's files."""
    corpus = hashlib.sha256()
    for batch in Reader("ingest/documents").batches():
        for doc_id, digest in batch.select("doc_id", "sha256").iter_rows():
            corpus.update(f"{doc_id}\0{digest}\n".encode())
    found = {"documents": corpus.hexdigest()}
    for name in ("metrics.json", "instances.parquet", "entries.parquet"):
        found[f"data/audit/{name}"] = files.sha256_file(AUDIT / name)
    return found


def render(context: dict[str, Any]) -> str:
    """The page from its contents; a name that the template does not find is an error."""
    style = (HERE / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "signed": signed, "range": interval}
    environment.globals |= {"charts": charts, "words": words}
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    # Ids and titles come from the corpus, too: no part of the page may hold what `shown` takes out of its texts.
    return shown(environment.get_template("page.html").render(context, style=Markup(style), policy=policy))


def number(value: float | None, digits: int = 3) -> str:
    """A figure as text; a dash where it is undefined."""
    if value is None:
        return "–"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None) -> str:
    """A difference with its sign."""
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def interval(figure: dict[str, Any]) -> str:
    """`low to high`, or nothing where there is none."""
    return "" if figure["low"] is None else f"{number(figure['low'])} to {number(figure['high'])}"


if __name__ == "__main__":
    run("report", main)
