"""The held-out extractor's model card."""

from __future__ import annotations

from pathlib import Path

from pipeline.files import write_text
from stages.extract.card import count_table
from stages.extract.fit import Corpus
from stages.heldout.model import HeldoutModel

NO_MODEL = """\
# No held-out extractor

The extractor was kept from another corpus (`extract.from`), and no held-out extractor was kept with it. data/heldout is
empty and the audit reports no L3.
"""


def write_card(file: Path, model: HeldoutModel, train: Corpus, tune: Corpus, share: float) -> None:
    """Write the card as Markdown."""
    table = count_table(train, tune)
    extractor, believed = model.extractor, model.believed
    types = len(extractor.trigger_type.labels)
    roles = 0 if extractor.role is None else len(extractor.role.labels) - 1
    write_text(file, f"""# Held-out extractor

The linear extractor of the stage `extract`, fitted anew for the audit alone (verifier level L3): on at most {share:.0%}
of the train windows, drawn by another hash, and on texts in which every name is the same word.
{types} event types, {roles} roles.

| | fitted on | calibrated on |
|---|---|---|
{table}

Floors: events {extractor.floors.trigger}, mentions {extractor.floors.mention}, roles {extractor.floors.role}.
Above them it believes roles from a confidence of {believed.argument}, and events that are candidates from
{believed.event}: the best F1 on the windows it was calibrated on. reading.json holds both, and the words that are never
taken for names.

## Limits

- Nothing upstream of the audit may read it, or it would no longer be held out.
- It shares its form and its annotation with the linear extractor, so the two err alike more often than readers would
  who never met: its agreement is a generous figure.
- Names are known by their capitals: in scripts without them nothing is hidden.
- Events whose trigger is itself a name are hardly found.
""")  # fmt: skip
