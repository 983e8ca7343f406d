"""Shared-prefix generation against transformers' `model.generate(num_return_sequences=8)`: samples per second.

    python benchmarks/generation.py [--rounds 3] [--prompts 1 4] [--models tiny-mla smollm2-135m] [--llama FOLDER]

The claim: at least 6 times as many samples per second for tiny-mla and at least 3 times for a Llama of SmolLM2-135M's
shape, on a CPU, with prompts of 800 tokens, 60 new tokens, 8 samples per prompt. Both sides run the same weights in
float32 on the same random prompts (random weights, or the checkpoint of --llama), draw at temperature 1 from the whole
vocabulary, and never stop early, so both make equally many tokens. tiny-mla is compared with transformers'
`DeepseekV3ForCausalLM`. Sides take turns, fresh prompts every round; medians over the rounds of wall-clock and of CPU
seconds (a busy machine disturbs the former). Before that, greedy output is asserted to be the same token by token.

A call makes the samples of one prompt or, in a second row, of four at once on both sides. With few rows a step of the
135M model mostly reads its weights (0.5 GB), on both sides alike, which bounds the ratio; more prompts share that.

Prints a table, writes benchmarks/results/generation.json, exits 1 when the claim does not hold.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM  # noqa: E402

from benchmarks.machine import describe  # noqa: E402
from pipeline.decoders import Decoder, decoder_for  # noqa: E402
from pipeline.files import write_json  # noqa: E402
from pipeline.mla import MLAConfig, MLAForCausalLM  # noqa: E402
from pipeline.mla_storage import save_mla  # noqa: E402
from pipeline.shared_prefix import Prompt, Sampling, generate  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "generation.json"
PROMPT, NEW, GROUP = 800, 60, 8
BARS = {"tiny-mla": 6.0, "smollm2-135m": 3.0}


def tiny_mla(_: Path | None) -> tuple[Decoder, Any]:
    """tiny-mla with a vocabulary of 4,096, and transformers' model of the same file."""
    model = MLAForCausalLM(MLAConfig(vocab_size=4096)).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_mla(model, folder)
        return decoder_for(model), DeepseekV3ForCausalLM.from_pretrained(folder, local_files_only=True).eval()  # type: ignore[no-untyped-call]


def smollm2(folder: Path | None) -> tuple[Decoder, Any]:
    """A Llama of SmolLM2-135M's shape: the given checkpoint, or random weights. Both sides use the same modules."""
    if folder is not None:
        model = LlamaForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
        return decoder_for(model), model
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True, initializer_range=0.04,
        rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()  # type: ignore[no-untyped-call]
    return decoder_for(model), model


MODELS = {"tiny-mla": tiny_mla, "smollm2-135m": smollm2}


def their_tokens(model: Any, prompts: list[Prompt], **how: Any) -> list[list[int]]:
    """New tokens by transformers' generate, without an end token, so that all have the same length."""
    ids = torch.tensor([prompt.ids for prompt in prompts])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, eos_token_id=None, pad_token_id=0, **how
    )
    tokens: list[list[int]] = out[:, PROMPT:].tolist()
    return tokens


def our_tokens(decoder: Decoder, prompts: list[Prompt], temperature: float) -> list[list[int]]:
    groups = generate(decoder, prompts, GROUP, Sampling(max_new_tokens=NEW, temperature=temperature))
    return [sample.tokens for samples in groups for sample in samples]


def timed(call: Callable[[], list[list[int]]], samples: int) -> tuple[float, float]:
    """Wall-clock and CPU seconds per sample of a call that makes that many samples of NEW tokens."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = call()
    spent = time.perf_counter() - wall, time.process_time() - cpu
    assert [len(sample) for sample in tokens] == [NEW] * samples
    return spent[0] / samples, spent[1] / samples


def measure(name: str, decoder: Decoder, model: Any, at_once: int, rounds: int) -> dict[str, object]:
    """One row of the table, with `at_once` prompts per call.

    Raises:
        AssertionError: greedy outputs differ.
    """
    rng, vocabulary = Random(0), range(decoder.shape.vocabulary)
    calls = [
        [Prompt(f"{call} {i}", tuple(rng.choices(vocabulary, k=PROMPT))) for i in range(at_once)]
        for call in range(rounds + 1)
    ]
    greedy = their_tokens(model, calls[0], do_sample=False)
    assert our_tokens(decoder, calls[0], 0) == [g for g in greedy for _ in range(GROUP)], "greedy outputs differ"
    ours, theirs = [], []
    drawn = {"do_sample": True, "num_return_sequences": GROUP, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    for prompts in calls[1:]:
        theirs.append(timed(partial(their_tokens, model, prompts, **drawn), at_once * GROUP))
        ours.append(timed(partial(our_tokens, decoder, prompts, 1.0), at_once * GROUP))
    wall = [their[0] / our[0] for their, our in zip(theirs, ours, strict=True)]
    cpu = [their[1] / our[1] for their, our in zip(theirs, ours, strict=True)]
    return {
        "model": name, "prompts": at_once, "parameters": sum(p.numel() for p in model.parameters()), "rounds": rounds,
        "same_greedy_tokens": sum(map(len, greedy)),
        "ours_per_second": round(median(1 / our[0] for our in ours), 3),
        "theirs_per_second": round(median(1 / their[0] for their in theirs), 3),
        "ratio": round(median(wall), 2), "ratios": [round(ratio, 2) for ratio in wall],
        "ours_cpu_seconds_each": round(median(our[1] for our in ours), 3),
        "theirs_cpu_seconds_each": round(median(their[1] for their in theirs), 3),
        "cpu_ratio": round(median(cpu), 2), "bar": BARS[name], "holds": median(wall) >= BARS[name],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="shared-prefix generation against model.generate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 4], help="prompts per call")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--llama", type=Path, help="a saved LlamaForCausalLM instead of random weights")
    args = parser.parse_args()
    rows = []
    columns = ("model", "prompts", "ours_per_second", "theirs_per_second", "ratio", "cpu_ratio", "bar", "holds")
    print("  ".join(columns), flush=True)
    for name in args.models:
        decoder, model = MODELS[name](args.llama)
        for at_once in args.prompts:
            rows.append(measure(name, decoder, model, at_once, args.rounds))
            print("  ".join(str(rows[-1][column]).rjust(len(column)) for column in columns), flush=True)
    holds = all(bool(row["holds"]) for row in rows)
    print("the claim holds" if holds else "THE CLAIM DOES NOT HOLD")
    write_json(RESULTS, {
        "command": " ".join(["python benchmarks/generation.py", *sys.argv[1:]]), "machine": describe(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "setting": {"prompt": PROMPT, "new": NEW, "group": GROUP, "threads": torch.get_num_threads(),
                    "precision": "float32", "llama": "random weights" if args.llama is None else "checkpoint"},
        "rows": rows, "holds": holds,
    })  # fmt: skip
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
