"""Many talks at once, and their answers kept: so that requests run in batches and a killed run goes on.

All talks of a shard are led in rounds: everything that is asked in a round is one call of the engine. What a round
answered is written at once to the shard's file, with the fingerprint of what was asked. A later run that asks the same
gets the same answers from there; one that asks anything else in a round generates the whole round anew, because
batches are part of what is computed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.engines import Answer, Engine, Request, Sampling
from pipeline.errors import DataError
from pipeline.rankings import Draft
from stages.rank_policy.questions import Talk

Asked = dict[int, Request]


def converse(talks: Sequence[Talk], engine: Engine, sampling: Sampling) -> list[Draft]:
    """Lead all talks to their end.

    Returns:
        Their drafts, in order.
    """
    drafts: dict[int, Draft] = {}
    waiting: Asked = {}

    def go_on(i: int, answers: list[Answer] | None) -> None:
        try:
            waiting[i] = next(talks[i]) if answers is None else talks[i].send(answers)
        except StopIteration as stop:
            drafts[i] = stop.value

    for i in range(len(talks)):
        go_on(i, None)
    while waiting:
        asked, waiting = waiting, {}
        for i, answers in zip(asked, engine.generate(list(asked.values()), sampling), strict=True):
            go_on(i, answers)
    return [drafts[i] for i in range(len(talks))]


class Recorder:
    """An engine that keeps what another one answered in a file, and answers from the file what was asked before.

    Args:
        engine: generates what is not in the file.
        file: of one shard.

    Raises:
        DataError: the file is not what this class writes.
    """

    def __init__(self, engine: Engine, file: Path) -> None:
        self._engine, self._file = engine, file
        self._kept: list[dict[str, Any]] = []
        self._round = 0
        self.generated = 0
        """Rounds that were generated here and now."""
        if file.is_file():
            kept = files.read_json(file)
            if not isinstance(kept, list) or not all(isinstance(item, dict) for item in kept):
                raise DataError("not a file of kept answers", file=file, mend="delete it")
            self._kept = kept

    def count(self, text: str) -> int:
        return self._engine.count(text)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Answer]]:
        """One round; it is generated and written as a whole before the first answer comes."""
        number, print_of = self._round, fingerprint(requests, sampling)
        self._round += 1
        if number >= len(self._kept) or self._kept[number].get("asked") != print_of:
            groups = list(self._engine.generate(requests, sampling))
            kept = {"asked": print_of, "answers": [[asdict(answer) for answer in group] for group in groups]}
            self._kept[number:] = [kept]
            files.write_json(self._file, self._kept)
            self.generated += 1
        for group in self._kept[number]["answers"]:
            yield [_answer(kept) for kept in group]


def fingerprint(requests: Sequence[Request], sampling: Sampling) -> str:
    """sha256 of everything that is asked in a round."""
    asked = [asdict(sampling), *(asdict(request) for request in requests)]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _answer(kept: dict[str, Any]) -> Answer:
    own = kept["model_log_probs"]
    return Answer(**{
        **kept, "tokens": tuple(kept["tokens"]), "log_probs": tuple(kept["log_probs"]),
        "model_log_probs": None if own is None else tuple(own),
    })  # fmt: skip
