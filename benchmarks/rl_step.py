"""The training forward of RL with a group's prompt run once, against one that repeats it: seconds per group.

    python benchmarks/rl_step.py [--rounds 3] [--models tiny-mla smollm2-135m]

The claim: forward and backward of a group at least 4 times as fast as the repeated forward, on a CPU with tiny-mla,
with prompts of 800 tokens, 60 response tokens and 8 rollouts per prompt. Both sides run the same weights in float32 on
the same random tokens, compute the vocabulary for response tokens alone, and must have equal gradients (relative error
below 1e-4). Sides take turns; medians over the rounds of wall-clock and of CPU seconds (a busy machine disturbs the
former). `limit` is what the saved tokens alone would give, repeated over shared. Rollouts, the optimiser and other
libraries are not measured here.

Prints a table, writes benchmarks/results/rl_step.json, exits 1 when the claim does not hold.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from benchmarks.machine import describe  # noqa: E402
from pipeline.decoders import decoder_for  # noqa: E402
from pipeline.files import write_json  # noqa: E402
from pipeline.mla import MLAConfig, MLAForCausalLM  # noqa: E402
from stages.rl import forward  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "rl_step.json"
PROMPT, NEW, GROUP = 800, 60, 8
BARS = {"tiny-mla": 4.0}


def tiny_mla() -> nn.Module:
    """tiny-mla with a vocabulary of 4,096."""
    return MLAForCausalLM(MLAConfig(vocab_size=4096)).eval()


def smollm2() -> nn.Module:
    """A Llama of SmolLM2-135M's shape, random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()  # type: ignore[no-untyped-call]


MODELS: dict[str, Callable[[], nn.Module]] = {"tiny-mla": tiny_mla, "smollm2-135m": smollm2}
WAYS = ("repeated", "split", "block_mask")


def step(model: nn.Module, way: str, prompt: list[int], responses: list[list[int]]) -> float:
    """Forward and backward of one group's mean log-probability; leaves gradients behind."""
    tokens = torch.tensor([t for r in responses for t in r])
    if way == "repeated":
        logits = forward.repeated_logits(model, forward.repeated(model, prompt, responses))
    else:
        decoder = decoder_for(model)
        logits = decoder.logits(forward.shared(decoder, prompt, responses, way))  # type: ignore[arg-type]
    loss = -forward.log_probs(logits, tokens, torch.ones(len(tokens))).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def measure(name: str, rounds: int) -> list[dict[str, object]]:
    """One row per way.

    Raises:
        AssertionError: gradients differ.
    """
    model, rng = MODELS[name](), Random(0)
    vocabulary = range(next(iter(model.parameters())).shape[0])
    spent: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    wanted: Tensor | None = None
    for number in range(rounds + 1):
        prompt = rng.choices(vocabulary, k=PROMPT)
        responses = [rng.choices(vocabulary, k=NEW) for _ in range(GROUP)]
        for way in WAYS:
            model.zero_grad(set_to_none=True)
            wall, cpu = time.perf_counter(), time.process_time()
            step(model, way, prompt, responses)
            if number:  # the first is a warm-up, and for comparing
                spent[way].append((time.perf_counter() - wall, time.process_time() - cpu))
            elif way == "repeated":
                wanted = gradient(model)
            else:
                assert wanted is not None
                error = float((gradient(model) - wanted).norm() / wanted.norm())
                assert error < 1e-4, f"{name}, {way}: gradients differ by {error:.1e}"
    limit = 1 / forward.work_ratio(PROMPT, NEW, GROUP)
    base = [median(column) for column in zip(*spent["repeated"], strict=True)]
    rows: list[dict[str, object]] = []
    for way in WAYS:
        wall, cpu = (median(column) for column in zip(*spent[way], strict=True))
        rows.append({
            "model": name, "way": way, "seconds": round(wall, 3), "cpu_seconds": round(cpu, 3),
            "faster": round(base[0] / wall, 2), "faster_cpu": round(base[1] / cpu, 2), "limit": round(limit, 2),
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=["tiny-mla"])
    options = parser.parse_args()
    rows = [row for name in options.models for row in measure(name, options.rounds)]
    print(f"prompt {PROMPT}, response {NEW}, group {GROUP}; {torch.get_num_threads()} threads")
    print(f"{'model':14}{'way':12}{'s/group':>9}{'CPU s':>9}{'faster':>8}{'by CPU':>8}{'limit':>7}")
    for row in rows:
        print(f"{row['model']:14}{row['way']:12}{row['seconds']:9}{row['cpu_seconds']:9}{row['faster']:8}"
              f"{row['faster_cpu']:8}{row['limit']:7}")  # fmt: skip
    write_json(RESULTS, {"machine": describe(), "prompt": PROMPT, "new": NEW, "group": GROUP, "rows": rows})
    short = [
        row for row in rows if row["way"] == "split" and float(str(row["faster_cpu"])) < BARS.get(str(row["model"]), 0)
    ]
    if short:
        sys.exit(f"below {BARS}: {short}")


if __name__ == "__main__":
    main()
