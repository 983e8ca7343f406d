"""The encoder extractor's model card: what it was trained on, how well it is calibrated, what it cannot do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from pipeline.files import write_text
from stages.extract.annotated import Annotated
from stages.extract.encoder.fit import Scores
from stages.extract.encoder.geometry import RIVALS
from stages.extract.encoder.model import EncoderExtractor
from stages.extract.stacked import StackedExtractor

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
    write_text(
        file,
        f"""# Encoder extractor

{_network(model, data, held_out, folds)}

Floors: events {model.floors.trigger}, mentions {model.floors.mention}, roles {model.floors.role}.
{_measured(model, scores.calibration_error, scores)}""",
    )


def write_stacked(
    file: Path, model: StackedExtractor, errors: Mapping[str, float], data: Annotated, held_out: Annotated,
    scores: Scores, folds: int = 0,
) -> None:  # fmt: skip
    """Write the card of a stacked extractor as Markdown; `errors` are the calibration errors of the stack."""
    maps = "\n".join(
        f"| {name} | {', '.join(f'{w:.3f}' for w in found.weights)} | {found.bias:.3f} |"
        for name, found in (
            ("event", model.event_map),
            ("mention", model.mention_map),
            ("role given the event", model.role_map),
        )
    )
    write_text(
        file,
        f"""# Stacked extractor

A linear extractor (linear/) and an encoder (encoder/), fitted on the same windows, read every document; a logistic map
of the two confidences, fitted on held-out windows, is what a hypothesis is worth (a role: given its event).

| confidence in | weights of linear, encoder | bias |
|---|---|---|
{maps}

The encoder is one part of it.

{_network(model.encoder, data, held_out, folds)}

Floors: events {model.floors.trigger}, mentions {model.floors.mention}, roles {model.floors.role}.
{_measured(model.encoder, errors, scores)}""",
    )


def _network(model: EncoderExtractor, data: Annotated, held_out: Annotated, folds: int) -> str:
    """What was trained, on what."""
    network, labels, settings = model.network, model.network.labels, model.network.settings
    counts = [("windows", *(_windows(part.documents) for part in (data, held_out)))]
    counts += [("documents", data.documents.height, held_out.documents.height)]
    counts += [(name, data.gold[name].height, held_out.gold[name].height) for name in COUNTED]
    table = "\n".join(f"| {name} | {a:,} | {b:,} |" for name, a, b in counts)
    read = (
        f"The train windows themselves are read by {folds} models, each of the windows that it does not read (folds/)."
        if folds else "The train windows are read by the model that was fitted on them."
    )  # fmt: skip
    return f"""A transformer ({Path(settings.base).name}, {network.backbone.config["model_type"]}, width \
{network.backbone.size}; the
embeddings and the {settings.frozen} lowest layers frozen) with joint heads for triggers and their types, participant
mentions, roles and relations. {len(labels.kinds)} event types, {len(labels.sorts)} mention types, {len(labels.roles)}
roles, {len(labels.links)} relations. Trained on the train split for {settings.epochs} epochs, calibrated on held-out
windows.

| | trained on | calibrated on |
|---|---|---|
{table}

{read}"""


def _measured(model: EncoderExtractor, errors: Mapping[str, float], scores: Scores) -> str:
    """Temperatures, calibration errors, clusters and limits."""
    labels, temperatures, clusters = model.network.labels, model.temperatures, scores.b_cubed
    table = "\n".join(f"| {name} | {value:.4f} |" for name, value in errors.items())
    coreference = (
        f"B-cubed F1 of gold mentions clustered by the string rule {clusters['rule']:.4f}, as used "
        f"{clusters['used']:.4f} (cross-validated by halves; threshold "
        f"{'never' if model.coreference.threshold > 1 else model.coreference.threshold})."
        if clusters else "Participants are clustered by the string rule alone."
    )  # fmt: skip
    return f"""Temperatures: types {temperatures.kind}, roles {temperatures.role}, relations {temperatures.link}.

| expected calibration error on | |
|---|---|
{table}

Each half of the held-out windows is judged by a calibration fitted on the other half. {coreference}
Precision, recall and F1 on every split stand in data/audit/extraction.json and in the report.

## Limits

{LIMITS.format(reach=labels.reach, rivals=RIVALS)}"""


def _windows(documents: pl.DataFrame) -> int:
    return documents["window_id"].n_unique()
