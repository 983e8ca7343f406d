"""Fitting the encoder extractor on the train split and calibrating it on the tune split.

Where the tune split holds no event, a tenth of the train windows, drawn by hash, is set aside by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import SetupError
from pipeline.params import Encoder
from stages.extract.annotated import Annotated
from stages.extract.encoder.calibrate import calibrate
from stages.extract.encoder.coreference import Coreference, fit_coreference
from stages.extract.encoder.geometry import spelling
from stages.extract.encoder.heads import Heads
from stages.extract.encoder.model import EncoderExtractor, Temperatures
from stages.extract.encoder.network import find_base, load_backbone, load_tokenizer
from stages.extract.encoder.reading import Network, cut_text
from stages.extract.encoder.step import Lesson
from stages.extract.encoder.targets import Placed, learn_labels, read_goal
from stages.extract.encoder.train import Course, Say, reproducible, train
from stages.extract.linear import Floors
from stages.extract.softmax import Calibration
from stages.extract.tokens import read_text


@dataclass(frozen=True, slots=True)
class Scores:
    """What was measured on held-out documents while calibrating.

    Args:
        calibration_error: expected calibration error of `event`, `mention`, `argument`.
        b_cubed: B-cubed F1 of clusters of gold mentions by the string `rule` and as `used`.
    """

    calibration_error: dict[str, float]
    b_cubed: dict[str, float]


def fit_encoder(
    data: Annotated, held_out: Annotated, floors: Floors, settings: Encoder, seed: int, work: Path, say: Say
) -> tuple[EncoderExtractor, Scores]:
    """Train on `data`, calibrate on `held_out`.

    Args:
        data: documents with at least one event.
        held_out: documents, possibly none.
        floors: stored with the model.
        settings: of the encoder.
        seed: of initial weights, order and dropout.
        work: scratch directory; a training that was killed goes on from its checkpoint there.
        say: told what is going on.

    Returns:
        The extractor, and what was measured on `held_out`.
    """
    folder = find_base(settings.base)
    tokenizer, special = load_tokenizer(folder)
    text = read_text(data.documents, data.sentences)
    gold = Placed.of(text, data.gold)
    labels = learn_labels(text, gold)
    goal = read_goal(text, labels, gold)
    pieces, segments, chunks = cut_text(text, tokenizer, special, settings)
    say(
        f"{len(goal.event_first)} events of {len(labels.kinds)} types, {len(goal.mention_first)} mentions, "
        f"{len(goal.role_A)} arguments in {len(labels.roles)} roles, {len(goal.link_L)} relations; {len(chunks)} chunks"
    )
    with reproducible(seed):
        backbone = load_backbone(folder, settings.frozen, settings.precision)
        if settings.chunk > backbone.positions:
            raise SetupError(
                f"the encoder reads at most {backbone.positions} pieces at once", field="extract.encoder.chunk"
            )
        heads = Heads(backbone.size, labels, mentions=len(goal.mention_first) > 0)
        lesson = Lesson(text, segments, spelling(text), goal, labels)
        train(backbone, heads, Course(lesson, pieces, chunks, special), settings, seed, work, say)
    plain = Calibration((1.0,), 0.0)
    network = Network(backbone, heads, tokenizer, special, settings, labels)
    model = EncoderExtractor(network, Temperatures(), plain, plain, plain, plain, Coreference(), floors)
    analysis = model.analyse(held_out.documents, held_out.sentences)
    placed = Placed.of(analysis.text, held_out.gold)
    model, errors = calibrate(model, analysis, read_goal(analysis.text, labels, placed))
    if placed.mentions.is_empty():
        return model, Scores(errors, {})
    people = placed.mentions.sort("first", "last", "mention_id").unique(
        ["first", "last"], keep="first", maintain_order=True
    )
    windows = model.people(analysis, people, people["first"].to_numpy(), people["last"].to_numpy())
    clusters = people.partition_by("window_id", maintain_order=True)
    examples = [(w, p, rows["entity_id"].to_list()) for (w, p), rows in zip(windows, clusters, strict=True)]
    coreference, b_cubed = fit_coreference(examples)
    return replace(model, coreference=coreference), Scores(errors, b_cubed)
