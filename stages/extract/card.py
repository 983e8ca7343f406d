"""The extractor's model card: what it was fitted on, how well it reads held-out text, what it cannot do."""

from __future__ import annotations

from pathlib import Path

from pipeline.files import write_text
from stages.extract.fit import Corpus
from stages.extract.linear import LinearExtractor

LIMITS = """\
- Words and their neighbours are all it looks at: it does not understand a sentence. Denials, plans and rumours are
  found like facts, and roles in unusual constructions are guessed from what is usual.
- Participants are told apart by their names; pronouns are not resolved.
- BEFORE comes from connectives and text order; other relations are not extracted.
- Confidence is calibrated on the held-out part of this corpus; on other text it means less.
"""


def count_table(train: Corpus, tune: Corpus) -> str:
    """Lines of the table: what a model was fitted on, and what it was calibrated on."""
    rows = [
        ("windows", len(set(train.text.window_ids)), len(set(tune.text.window_ids))),
        ("documents", len(train.text.doc_ids), len(tune.text.doc_ids)),
        ("events", len(train.gold.event_first), len(tune.gold.event_first)),
        ("mentions", len(train.gold.mention_first), len(tune.gold.mention_first)),
        ("arguments", len(train.gold.role_G), len(tune.gold.role_G)),
    ]
    return "\n".join(f"| {name} | {a:,} | {b:,} |" for name, a, b in rows)


def write_card(file: Path, model: LinearExtractor, train: Corpus, tune: Corpus, folds: int) -> None:
    """Write the card as Markdown."""
    table = count_table(train, tune)
    roles = 0 if model.role is None else len(model.role.labels) - 1
    read = (
        f"The train windows themselves are read by {folds} models, each of the windows that it does not read (folds/)."
        if folds else "The train windows are read by the model that was fitted on them."
    )  # fmt: skip
    write_text(file, f"""# Linear extractor

Conditional random fields over hashed features find triggers and mentions; linear classifiers type them and give roles.
{len(model.trigger_type.labels)} event types, {roles} roles. Fitted on the train split, calibrated on held-out windows.

| | fitted on | calibrated on |
|---|---|---|
{table}

{read}

Floors: events {model.floors.trigger}, mentions {model.floors.mention}, roles {model.floors.role}.
Its precision, recall and F1 on every split stand in data/audit/extraction.json and in the report.

## Limits

{LIMITS}""")  # fmt: skip
