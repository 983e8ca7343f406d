"""The encoder extractor's model card: what it was trained on, how well it is calibrated, what it cannot do."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipeline.files import write_text
from stages.extract.annotated import Annotated
from stages.extract.encoder.fit import Scores
from stages.extract.encoder.geometry import RIVALS
from stages.extract.encoder.model import EncoderExtractor

LIMITS = """\
- Trained on the types and roles of one corpus: whatever else happens in a text is not found, and a mention counts as a
  participant where it takes part in an event of these types.
- The encoder reads English; other languages become unknown pieces, and little is found in them. Spelling beyond case,
  digits and signs is not seen.
- Denials, plans and rumours are found like facts where the annotation does not tell them apart.
- Arguments are looked for at most {reach} sentence(s) away from their trigger, and among the {rivals} nearest mentions
  on either side of it. Relations are looked for among neighbouring triggers of one document.
- Confidence is calibrated on the held-out part of this corpus; on other text it means less.
- Weights depend on the machine's arithmetic in the last digits; on one kind of machine equal input gives equal bytes.
"""

COUNTED = ("events", "mentions", "arguments", "relations", "labelled")


def write_card(
    file: Path, model: EncoderExtractor, data: Annotated, held_out: Annotated, scores: Scores, folds: int = 0
) -> None:
    """Write the card as Markdown."""
    network, labels = model.network, model.network.labels
    counts = [("windows", *(_windows(part.documents) for part in (data, held_out)))]
    counts += [("documents", data.documents.height, held_out.documents.height)]
    counts += [(name, data.gold[name].height, held_out.gold[name].height) for name in COUNTED]
    table = "\n".join(f"| {name} | {a:,} | {b:,} |" for name, a, b in counts)
    settings, temperatures = network.settings, model.temperatures
    errors = "\n".join(f"| {name} | {value:.4f} |" for name, value in scores.calibration_error.items())
    clusters = scores.b_cubed
    coreference = (
        f"B-cubed F1 of gold mentions clustered by the string rule {clusters['rule']:.4f}, as used "
        f"{clusters['used']:.4f} (cross-validated by halves; threshold "
        f"{'never' if model.coreference.threshold > 1 else model.coreference.threshold})."
        if clusters else "Participants are clustered by the string rule alone."
    )  # fmt: skip
    read = (
        f"The train windows themselves are read by {folds} models, each of the windows that it does not read (folds/)."
        if folds else "The train windows are read by the model that was fitted on them."
    )  # fmt: skip
    write_text(file, f"""# Encoder extractor

A transformer ({Path(settings.base).name}, {network.backbone.config["model_type"]}, width {network.backbone.size}; the
embeddings and the {settings.frozen} lowest layers frozen) with joint heads for triggers and their types, participant
mentions, roles and relations. {len(labels.kinds)} event types, {len(labels.sorts)} mention types, {len(labels.roles)}
roles, {len(labels.links)} relations. Trained on the train split for {settings.epochs} epochs, calibrated on held-out
windows.

| | trained on | calibrated on |
|---|---|---|
{table}

{read}

Floors: events {model.floors.trigger}, mentions {model.floors.mention}, roles {model.floors.role}.
Temperatures: types {temperatures.kind}, roles {temperatures.role}, relations {temperatures.link}.

| expected calibration error on | |
|---|---|
{errors}

Each half of the held-out windows is judged by a calibration fitted on the other half. {coreference}
Precision, recall and F1 on every split stand in data/audit/extraction.json and in the report.

## Limits

{LIMITS.format(reach=labels.reach, rivals=RIVALS)}""")  # fmt: skip


def _windows(documents: pl.DataFrame) -> int:
    return documents["window_id"].n_unique()
