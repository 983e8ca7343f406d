"""The encoder extractor against transformers' token-classification pipeline: documents per second and peak memory.

    python benchmarks/extract.py --model models/extract --data data [--documents 50 100 200]

Both sides run the same fine-tuned encoder with the same linear head, fitted here by ridge regression on train triggers,
and give the same output: a label for every word, read off its first piece, and from these the trigger spans. (The
pipeline's groups of pieces are turned back into such labels outside the time taken.) So what is compared is how a
document gets through the encoder. The pipeline cuts long documents with a stride (it must) and is given the batch size
that suits it best. "everything" is the product's own reading: triggers, types, mentions, roles, relations, clusters.

Two kinds of documents: `cut` to what fits one chunk, where both sides see the same text around every word and must
give the same spans; and `whole`, where each has to cut in its own way (the pipeline takes the surer of two readings of
an overlap, we the one in the middle of its chunk), so only their accuracy can be compared.

Every measurement is a process of its own with two threads; sides take turns; medians over rounds. Accuracy is F1 of
trigger spans on the documents that were read.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import polars as pl  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from benchmarks.machine import describe  # noqa: E402
from pipeline import tables  # noqa: E402
from stages.extract.encoder.chunks import bucket  # noqa: E402
from stages.extract.encoder.model import EncoderExtractor  # noqa: E402
from stages.extract.encoder.network import lay_out  # noqa: E402
from stages.extract.encoder.reading import BATCH, Network  # noqa: E402
from stages.extract.encoder.storage import load_encoder  # noqa: E402
from stages.extract.encoder.train import reproducible  # noqa: E402

THREADS, ROUNDS, PROBE_DOCUMENTS = 2, 3, 120
CUT = 1200
"""Characters that fit one chunk: then no side has to cut, and the outputs can be equal."""
LABELS = ("O", "B-TRIGGER", "I-TRIGGER")
SIDES = ("pipeline 1", "pipeline 8", "pipeline 32", "encoder", "encoder float32", "everything")
Spans = set[tuple[str, int, int]]
Frames = tuple[pl.DataFrame, pl.DataFrame]


def read(data: Path, split: str, most: int, cut: bool = False) -> Frames:
    """The first documents of a split by id, and their sentences; with `cut`, as many of these as fit one chunk."""
    documents = tables.read("ingest/documents", data).filter(pl.col("split") == split).head(most)
    ids = documents["doc_id"].implode()
    sentences = tables.read("ingest/sentences", data).filter(pl.col("doc_id").is_in(ids))
    if cut:
        sentences = sentences.filter(pl.col("end") <= CUT)
        ends = sentences.group_by("doc_id").agg(pl.col("end").max())
        documents = documents.join(ends, on="doc_id", maintain_order="left").with_columns(
            text=pl.col("text").str.slice(0, pl.col("end"))
        )
    return documents, sentences


def gold_spans(data: Path, split: str, documents: pl.DataFrame) -> Spans:
    events = tables.read(f"ingest/gold/{split}/events", data)
    own = events.filter(pl.col("doc_id").is_in(documents["doc_id"].implode()))
    return set(own.select("doc_id", "start", "end").iter_rows())


def word_vectors(network: Network, frames: Frames) -> tuple[Any, torch.Tensor]:
    """The shard, and the encoder's output for the first word piece of every token, by the product's own reading."""
    shard = network.prepare(*frames)
    out = torch.empty(shard.text.size, network.backbone.size)
    for block in shard.blocks:
        for batch in bucket(list(block.chunks), BATCH, network.special.count):
            laid = lay_out(shard.pieces, [block.chunks[c] for c in batch], network.special)
            hidden = network.backbone.upper(network.backbone.lower(laid.ids_BS, laid.mask_BS), laid.mask_BS)
            flat = hidden.reshape(-1, hidden.shape[-1])
            heads = torch.from_numpy(np.unique(laid.owner_P.numpy(), return_index=True)[1])
            vectors = flat[laid.place_P[heads]]
            for begin, chunk in zip(laid.first_B.tolist(), laid.chunks, strict=False):
                rows = slice(begin + chunk.begin - chunk.first, begin + chunk.end - chunk.first)
                out[chunk.begin : chunk.end] = vectors[rows]
    return shard, out


def fit_probe(network: Network, data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """[3, D] weights and [3] biases of a linear head for B, I and O, by ridge regression on train documents."""
    frames = read(data, "train", PROBE_DOCUMENTS)
    shard, x = word_vectors(network, frames)
    text = shard.text
    target = torch.zeros(text.size, 3)
    target[:, 0] = 1
    spans = sorted(gold_spans(data, "train", frames[0]))
    places = text.locate([s[0] for s in spans], np.array([s[1] for s in spans]), np.array([s[2] for s in spans]))
    for first, last in zip(*(p.tolist() for p in places), strict=True):
        target[first : last + 1] = torch.tensor([0.0, 0.0, 1.0])
        target[first] = torch.tensor([0.0, 1.0, 0.0])
    design = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
    # Triggers are rare: they weigh ten times as much.
    weight = (1 + 9 * (1 - target[:, :1])).double()
    left = design.T @ (weight * design) + 10 * torch.eye(design.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(left, design.T @ (weight * target.double())).float()
    return solved[:-1].T.contiguous(), solved[-1].contiguous()


def spans_of(label_T: NDArray[np.int64], shard: Any) -> Spans:
    """Words labelled B or I and the I that follow within the sentence, in characters."""
    text = shard.text
    out, open_at = set(), -1
    ends = [*label_T.tolist(), 0]
    for t, label in enumerate(ends):
        broken = t == text.size or label != 2 or (t > 0 and text.sentence_T[t] != text.sentence_T[t - 1])
        if open_at >= 0 and broken:
            doc = int(text.doc_T[open_at])
            out.add((text.doc_ids[doc], int(text.start_T[open_at]), int(text.end_T[t - 1])))
            open_at = -1
        if label and open_at < 0:
            open_at = t
    return out


def run_encoder(network: Network, probe: tuple[torch.Tensor, torch.Tensor], frames: Frames) -> Spans:
    with reproducible(0), torch.inference_mode():
        shard, x = word_vectors(network, frames)
        labels = (x @ probe[0].T + probe[1]).argmax(dim=1).numpy()
    return spans_of(labels, shard)


def run_everything(model: EncoderExtractor, frames: Frames) -> Spans:
    analysis = model.analyse(*frames)
    events, _ = model.events(analysis)
    model.arguments(analysis, events, model.mentions(analysis))
    return set(events.filter(pl.col("confidence") >= 0.3).select("doc_id", "start", "end").iter_rows())


def build_pipeline(network: Network, probe: tuple[torch.Tensor, torch.Tensor], batch: int, cut: bool) -> Any:
    """transformers' own pipeline around the same weights, in float32; for whole documents it must give groups."""
    from transformers import AutoConfig, AutoModelForTokenClassification, PreTrainedTokenizerFast, pipeline

    backbone = network.backbone
    settings = {name: value for name, value in backbone.config.items() if name != "model_type"}
    config = AutoConfig.for_model(backbone.config["model_type"], **settings, num_labels=len(LABELS))
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: i for i, label in enumerate(LABELS)}
    model = AutoModelForTokenClassification.from_config(config)  # type: ignore[no-untyped-call]
    model.bert.embeddings = backbone.embeddings
    model.bert.encoder.layer = torch.nn.ModuleList([*backbone.frozen, *backbone.trained])
    with torch.no_grad():
        model.classifier.weight.copy_(probe[0])
        model.classifier.bias.copy_(probe[1])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=network.tokenizer, model_max_length=network.settings.chunk, cls_token="[CLS]",
        sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]",
    )  # fmt: skip
    how: dict[str, Any] = {"aggregation_strategy": "simple", "stride": 2 * network.settings.context}
    return pipeline(
        "token-classification", model=model.eval(), tokenizer=tokenizer, batch_size=batch, device="cpu",
        **({"aggregation_strategy": "none"} if cut else how),
    )  # fmt: skip


def labels_of(found: list[list[dict[str, Any]]], frames: Frames, shard: Any) -> NDArray[np.int64]:
    """What the pipeline found as labels of our words, by the first piece of each.

    Pieces carry their label. Of groups only the extent is known: B where one begins with the word, I where it goes on.
    """
    text = shard.text
    place = {doc_id: d for d, doc_id in enumerate(text.doc_ids)}
    label_T = np.zeros(text.size, dtype=np.int64)
    for doc_id, groups in zip(frames[0]["doc_id"].to_list(), found, strict=True):
        low, high = np.searchsorted(text.doc_T, [place[doc_id], place[doc_id] + 1])
        for group in groups:
            if "entity" in group:
                label_T[low:high][text.start_T[low:high] == group["start"]] = LABELS.index(group["entity"])
                continue
            inside = (text.start_T[low:high] >= group["start"]) & (text.start_T[low:high] < group["end"])
            label_T[low:high][inside] = 2
            label_T[low:high][text.start_T[low:high] == group["start"]] = 1
    return label_T


def measure(side: str, model_folder: Path, probe_file: Path, data: Path, documents: int, cut: bool) -> dict[str, Any]:
    """One measurement, in the process that calls it."""
    torch.set_num_threads(THREADS)
    model = load_encoder(model_folder)
    network = model.network
    probe = tuple(torch.load(probe_file, weights_only=True))
    if side != "encoder" and side != "everything":
        network.backbone.low = False
    frames = read(data, "test", documents, cut)
    warm = read(data, "test", 4, cut)
    classify = build_pipeline(network, probe, int(side.split()[1]), cut) if side.startswith("pipeline") else None

    def run(some: Frames) -> Any:
        if classify is not None:
            return classify(some[0]["text"].to_list())
        return run_everything(model, some) if side == "everything" else run_encoder(network, probe, some)

    run(warm)
    started, busy = time.perf_counter(), time.process_time()
    found = run(frames)
    seconds, cpu = time.perf_counter() - started, time.process_time() - busy
    if classify is not None:
        shard = network.prepare(*frames)
        found = spans_of(labels_of(found, frames, shard), shard)
    known = set(map(tuple, frames[1].select("doc_id").unique().rows()))
    ends = dict(frames[0].select("doc_id", pl.col("text").str.len_chars()).rows())
    gold = {s for s in gold_spans(data, "test", frames[0]) if (s[0],) in known and s[2] <= ends[s[0]]}
    right = len(found & gold)
    return {
        "side": side, "documents": frames[0].height, "characters": int(frames[0]["text"].str.len_chars().sum()),
        "seconds": seconds, "cpu_seconds": cpu, "f1": 2 * right / max(1, len(found) + len(gold)), "found": len(found),
        "peak_mib": peak_mib(),
        "spans": sorted(found) if side != "everything" else [],
    }  # fmt: skip


def peak_mib() -> float:
    """Largest resident set of this process; getrusage would count that of the parent before exec, too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, default=Path("models/extract"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--documents", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--one", nargs=3, metavar=("SIDE", "PROBE", "KIND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        side, file, kind = options.one
        found_one = measure(side, options.model, Path(file), options.data, options.documents[0], kind == "cut")
        print(json.dumps(found_one))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.pt"
        with reproducible(0), torch.inference_mode():
            torch.save(list(fit_probe(load_encoder(options.model).network, options.data)), probe)
        for kind, documents in [(kind, n) for kind in ("cut", "whole") for n in options.documents]:
            found: dict[str, list[dict[str, Any]]] = {}
            for _ in range(options.rounds):
                for side in SIDES:
                    command = [sys.executable, __file__, "--model", str(options.model), "--data", str(options.data),
                               "--documents", str(documents), "--one", side, str(probe), kind]  # fmt: skip
                    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    found.setdefault(side, []).append(json.loads(out.splitlines()[-1]))
            rows += [{"kind": kind, **row} for row in summarise(found, kind)]
    results = ROOT / "benchmarks/results/extract.json"
    results.parent.mkdir(exist_ok=True)
    written = {"machine": describe(), "threads": THREADS, "rounds": options.rounds, "rows": rows}
    results.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def summarise(found: dict[str, list[dict[str, Any]]], kind: str) -> list[dict[str, Any]]:
    """Medians of one size, printed; ratios are to the fastest pipeline of the same round."""
    rows: list[dict[str, Any]] = []
    best = {
        key: [min(runs[i][key] for side, runs in found.items() if side.startswith("pipeline"))
              for i in range(len(found["encoder"]))]
        for key in ("seconds", "cpu_seconds")
    }  # fmt: skip
    reference = {tuple(span) for span in found["encoder float32"][0]["spans"]}
    for side, runs in found.items():
        spans = {tuple(span) for span in runs[0]["spans"]}
        middle = {key: statistics.median(run[key] for run in runs) for key in ("seconds", "cpu_seconds", "peak_mib")}
        ratios = {key: [b / run[key] for b, run in zip(best[key], runs, strict=True)] for key in best}
        row = {
            "side": side, "documents": runs[0]["documents"], **{key: round(v, 2) for key, v in middle.items()},
            "documents_per_second": round(runs[0]["documents"] / middle["seconds"], 2),
            "speedup": round(statistics.median(ratios["seconds"]), 2),
            "speedup_cpu": round(statistics.median(ratios["cpu_seconds"]), 2),
            "f1": round(runs[0]["f1"], 4),
            "same_spans": round(len(spans & reference) / max(1, len(spans | reference)), 4) if spans else None,
        }  # fmt: skip
        rows.append(row)
        print(kind, "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return rows


if __name__ == "__main__":
    main()
