"""MAVEN-ERE's partial recovery as a corpus in the `jsonl` format; the release itself has an importer.

    python benchmarks/maven_ere_partial.py ../shared/data/maven_ere corpus.jsonl
    cp intents/maven_ere/*.yaml intents/jsonl/
    dvc exp run -S ingest.source=jsonl -S ingest.path=corpus.jsonl

What the partial files hold, and what becomes of it:

- `sentences` and `sent_char`: the text, and its sentences.
- `gold_events`, for about a third of the sentences: event mentions. A sentence counts as labelled when the position of
  each of its triggers is known; elsewhere "no event" teaches nothing. Coreference is not in the files, so every mention
  is a chain of its own.
- `causal_sentence_pairs` say that one sentence's events cause or enable another's, not which ones. A pair becomes a
  relation between two triggers only where both sentences are labelled and hold one trigger each; CAUSE and PRECONDITION
  are merged in the files, and CAUSE stands for both. Their number of mention pairs is no help beyond that: in a third
  of these cases it is greater than 1.
- Splits: train in the order of sha256(doc_id) 90/10 into `train` and `tune`; valid is `test`.

Temporal and subevent relations and causal ones within a sentence are not in the files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]
FILES = ("train.docs.jsonl", "valid.docs.jsonl")
TRAIN_SHARE = 0.9


def read(file: Path) -> list[Record]:
    """The records of one of the files."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def splits(documents: list[Record]) -> dict[str, str]:
    """doc_id -> split."""
    train = sorted(
        (d["doc_id"] for d in documents if d["split"] == "train"), key=lambda i: hashlib.sha256(i.encode()).hexdigest()
    )
    first = round(len(train) * TRAIN_SHARE)
    split_of = {doc_id: "train" if i < first else "tune" for i, doc_id in enumerate(train)}
    return {d["doc_id"]: split_of.get(d["doc_id"], "test") for d in documents}


def convert(document: Record, split: str, counts: Counter[str]) -> Record:
    """One document as a record of the `jsonl` format; `counts` says what was used and what was not.

    Raises:
        ValueError: an offset that does not give the text that the file states.
    """
    text = " ".join(document["sentences"])
    events: list[Record] = []
    only: dict[int, str] = {}
    labelled = []
    for i, ((begin, end), found) in enumerate(zip(document["sent_char"], document["gold_events"], strict=True)):
        if text[begin:end] != document["sentences"][i]:
            raise ValueError(f"{document['doc_id']}: sentence {i} is not at {begin}-{end}")
        if found is None:
            continue
        counts["labelled sentences"] += 1
        placed = [event for event in found if event["span"] is not None]
        counts["triggers without a position, left out"] += len(found) - len(placed)
        if len(placed) == len(found):
            labelled.append(i)
        for event in placed:
            start, stop = (begin + offset for offset in event["span"])
            if text[start:stop] != event["trigger"]:
                raise ValueError(f"{document['doc_id']}: {event['trigger']!r} is not at {start}-{stop}")
            events.append({"id": f"e{len(events)}", "start": start, "end": stop, "type": event["type"]})
        if len(found) == len(placed) == 1:
            only[i] = events[-1]["id"]
    relations = []
    for cause, effect, _ in document["causal_sentence_pairs"]:
        counts["causal sentence pairs"] += 1
        if cause in only and effect in only:
            relations.append({"head": only[cause], "tail": only[effect], "type": "CAUSE"})
    counts["events"] += len(events)
    counts["relations"] += len(relations)
    counts[f"documents, {split}"] += 1
    return {
        "doc_id": document["doc_id"], "split": split, "title": document["topic"] or document["doc_id"], "text": text,
        "sentences": document["sent_char"], "labelled": labelled, "events": events, "relations": relations,
    }  # fmt: skip


def records(folder: Path, counts: Counter[str]) -> Iterator[Record]:
    """All documents of both files."""
    documents = [document for name in FILES for document in read(folder / name)]
    split_of = splits(documents)
    for document in documents:
        yield convert(document, split_of[document["doc_id"]], counts)


def main() -> None:
    """Convert a folder and print what was used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, help="the folder with train.docs.jsonl and valid.docs.jsonl")
    parser.add_argument("out", type=Path, help="the file to write")
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    with arguments.out.open("w", encoding="utf-8", newline="\n") as out:
        for record in records(arguments.folder, counts):
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
    for name, count in sorted(counts.items()):
        print(f"{name}: {count}")


if __name__ == "__main__":
    main()
