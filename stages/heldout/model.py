"""The held-out model: a linear extractor of masked texts, the words that are no names, and what it believes.

On disk: the extractor's own files (`stages.extract.storage`) and reading.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError
from pipeline.files import read_json, write_json
from stages.extract.annotated import Annotated
from stages.extract.fit import Corpus
from stages.extract.linear import LinearExtractor
from stages.extract.scores import Decision, decide
from stages.extract.storage import load_linear, save_linear
from stages.heldout.masking import in_original

READING = "reading.json"
UNTOLD = Decision(0.5, 0.5)
"""What is believed where no held-out gold says better."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldoutModel:
    """What reads masked texts.

    Args:
        extractor: fitted on them.
        common: words that are no names.
        believed: least confidence of an event, and of an argument, that the model stands for.
    """

    extractor: LinearExtractor
    common: frozenset[str]
    believed: Decision


def best_decision(extractor: LinearExtractor, corpus: Corpus, original: Annotated) -> Decision:
    """The thresholds with the best F1 of events, and of the roles of gold mentions, on the tune windows.

    Args:
        extractor: reads `corpus`.
        corpus: the masked texts.
        original: the same documents with their names, and their gold.
    """
    gold = original.gold
    if gold["events"].is_empty():
        return UNTOLD
    analysis = extractor.analyse_words(corpus.text, corpus.words, corpus.rows)
    events, _ = extractor.events(analysis)
    arguments = extractor.arguments(analysis, events, gold["mentions"])
    shown, names = in_original(events, dict(original.documents.select("doc_id", "text").iter_rows()))
    arguments = arguments.with_columns(event_id=arguments["event_id"].replace(names))
    return decide(gold, {"events": shown, "mentions": gold["mentions"], "arguments": arguments}, original.sentences)


def save_model(model: HeldoutModel, folder: Path) -> None:
    """Write the model; equal models give equal bytes."""
    save_linear(model.extractor, folder)
    believed = {"event": model.believed.event, "argument": model.believed.argument}
    write_json(folder / READING, {"believed": believed, "common_words": sorted(model.common)})


def load_model(folder: Path) -> HeldoutModel:
    """Read what `save_model` wrote.

    Raises:
        DataError: a file is missing or broken.
    """
    extractor, reading = load_linear(folder), read_json(folder / READING)
    try:
        believed = Decision(float(reading["believed"]["event"]), float(reading["believed"]["argument"]))
        common = reading["common_words"]
        if not isinstance(common, list) or not all(type(word) is str for word in common):
            raise TypeError("common_words is no list of words")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"broken model: {type(error).__name__} {error}", file=folder / READING,
                        mend="run `dvc repro heldout`") from None  # fmt: skip
    return HeldoutModel(extractor, frozenset(common), believed)
