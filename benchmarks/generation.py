"""Shared-prefix generation against transformers' `model.generate(num_return_sequences=8)`: samples per second.

    python benchmarks/generation.py [--rounds 3] [--models tiny-mla smollm2-135m] [--llama FOLDER]

The claim: at least 6 times as many samples per second for tiny-mla and at least 3 times for a Llama of SmolLM2-135M's
shape, on a CPU, with prompts of 800 tokens, 60 new tokens, 8 samples per prompt. Both sides run the same weights in
float32 on the same random prompts (random weights, or the checkpoint of --llama), draw at temperature 1 from the whole
vocabulary, and never stop early, so both make equally many tokens. tiny-mla is compared with transformers'
`DeepseekV3ForCausalLM`. Sides take turns; a round is one prompt; medians over the rounds of wall-clock and of CPU
seconds (a busy machine disturbs the former). Before that, greedy output is asserted to be the same token by token.

Prints a table, writes benchmarks/results/generation.json, exits 1 when the claim does not hold.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
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
from pipeline.files import write_json  # noqa: E402
from pipeline.mla import MLAConfig, MLAForCausalLM, save_mla  # noqa: E402
from pipeline.shared_prefix import Decoder, Prompt, Sampling, decoder_for, generate  # noqa: E402

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


def their_tokens(model: Any, prompt: Prompt, **how: Any) -> list[list[int]]:
    """New tokens by transformers' generate, without an end token, so that all have the same length."""
    ids = torch.tensor([prompt.ids])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, eos_token_id=None, pad_token_id=0, **how
    )
    tokens: list[list[int]] = out[:, PROMPT:].tolist()
    return tokens


def our_tokens(decoder: Decoder, prompt: Prompt, temperature: float) -> list[list[int]]:
    (samples,) = generate(decoder, [prompt], GROUP, Sampling(max_new_tokens=NEW, temperature=temperature))
    return [sample.tokens for sample in samples]


def timed(call: Callable[[], list[list[int]]]) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a call that makes GROUP samples of NEW tokens."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = call()
    spent = time.perf_counter() - wall, time.process_time() - cpu
    assert [len(sample) for sample in tokens] == [NEW] * GROUP
    return spent


def measure(name: str, rounds: int, folder: Path | None) -> dict[str, object]:
    """One row of the table.

    Raises:
        AssertionError: greedy outputs differ.
    """
    decoder, model = MODELS[name](folder)
    rng = Random(0)
    prompts = [
        Prompt(f"round {i}", tuple(rng.randrange(decoder.shape.vocabulary) for _ in range(PROMPT)))
        for i in range(rounds + 1)
    ]
    (greedy,) = their_tokens(model, prompts[0], do_sample=False)
    assert our_tokens(decoder, prompts[0], 0) == [greedy] * GROUP, "greedy outputs differ"
    ours, theirs = [], []
    drawn = {"do_sample": True, "num_return_sequences": GROUP, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    for prompt in prompts[1:]:
        theirs.append(timed(lambda prompt=prompt: their_tokens(model, prompt, **drawn)))  # type: ignore[misc]
        ours.append(timed(lambda prompt=prompt: our_tokens(decoder, prompt, 1.0)))  # type: ignore[misc]
    wall = [their[0] / our[0] for their, our in zip(theirs, ours, strict=True)]
    cpu = [their[1] / our[1] for their, our in zip(theirs, ours, strict=True)]
    return {
        "model": name, "weights": "random" if folder is None or name == "tiny-mla" else "checkpoint",
        "parameters": sum(p.numel() for p in model.parameters()), "rounds": rounds, "same_greedy_tokens": len(greedy),
        "ours_samples_per_second": round(median(GROUP / our[0] for our in ours), 3),
        "theirs_samples_per_second": round(median(GROUP / their[0] for their in theirs), 3),
        "ratio": round(median(wall), 2), "ratios": [round(ratio, 2) for ratio in wall],
        "ours_cpu_seconds": round(median(our[1] for our in ours), 2),
        "theirs_cpu_seconds": round(median(their[1] for their in theirs), 2),
        "cpu_ratio": round(median(cpu), 2), "bar": BARS[name], "holds": median(wall) >= BARS[name],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="shared-prefix generation against model.generate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--llama", type=Path, help="a saved LlamaForCausalLM instead of random weights")
    args = parser.parse_args()
    rows = []
    columns = ("model", "ours_samples_per_second", "theirs_samples_per_second", "ratio", "cpu_ratio", "bar", "holds")
    print("  ".join(columns), flush=True)
    for name in args.models:
        rows.append(measure(name, args.rounds, args.llama))
        print("  ".join(str(rows[-1][column]).rjust(len(column)) for column in columns), flush=True)
    holds = all(bool(row["holds"]) for row in rows)
    print("the claim holds" if holds else "THE CLAIM DOES NOT HOLD")
    write_json(RESULTS, {
        "command": " ".join(["python benchmarks/generation.py", *sys.argv[1:]]), "machine": describe(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "setting": {"prompt": PROMPT, "new": NEW, "group": GROUP, "threads": torch.get_num_threads(),
                    "precision": "float32"},
        "rows": rows, "holds": holds,
    })  # fmt: skip
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
