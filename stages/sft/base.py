"""Train tiny-mla from nothing: `python -m stages.sft.base NAME` writes models/fitted/NAME/policy (`make train-base`).

A base policy is an input of the pipeline like any other pretrained model, so this is no stage: it takes an hour or
more. The model reads generated windows (`synthetic.py`), first under a small budget, which shows the surest evidence
only and asks for short lists, then under the full one. Killed, it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.files import WORK, publish_directory, write_text
from pipeline.mla import MLAConfig, MLAForCausalLM
from pipeline.params import Params
from pipeline.policies import make_policy, save_policy
from pipeline.prompts import Prompter
from pipeline.stage import run
from stages.reward.model import RewardModel
from stages.sft import synthetic
from stages.sft.lessons import Lesson, Teacher, read_lessons
from stages.sft.tokenizer import END, SPECIAL, train_tokenizer
from stages.sft.training import Course, Settings, State, Training

FITTED = Path("models/fitted")
TOKENIZED = 600
"""Lessons that the tokenizer is fitted on."""


def main(options: argparse.Namespace, params: Params) -> None:
    """Build the corpus, fit the tokenizer, train, publish."""
    work = WORK / "base"
    own = synthetic.build(work / "corpus", params, options.windows)
    model = RewardModel.load(work / "corpus/models/reward")
    data = work / "corpus/data"
    lessons = list(read_lessons("train", synthetic.SETTING, own, model, options.instances, data))
    plain = replace(Prompter.of(params, len, SPECIAL), budget=1 << 30)
    tokenizer = train_tokenizer((shown(plain, lesson, own.seed) for lesson in lessons[:TOKENIZED]), options.vocabulary)
    end = tokenizer.token_to_id(END)
    assert end is not None
    mla = MLAForCausalLM(shape(tokenizer.get_vocab_size()), seed=own.seed)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text).ids

    states = []
    for number, budget in enumerate(options.budgets):
        prompter = replace(Prompter.of(params, lambda text: len(encode(text)), SPECIAL), budget=budget)
        how = Settings(
            epochs=options.epochs, batch=options.batch, rate=options.rate, prompt_weight=options.prompt_weight,
            seed=own.seed + number,
        )  # fmt: skip
        say(f"phase {number + 1} of {len(options.budgets)}: prompts of at most {budget} tokens")
        course = Course(lessons, Teacher(prompter, encode, encode, end, own.seed + number))
        states.append(Training(mla, course, how, work / f"phase{number}", say).run())
    with publish_directory(FITTED / options.name / "policy") as folder:
        save_policy(make_policy(mla.bfloat16(), tokenizer, end=END, name=options.name), folder)
        write_text(folder / "README.md", card(options, lessons, mla, states))


def shape(vocabulary: int) -> MLAConfig:
    """Sizes of tiny-mla; latent and rotary widths are DeepSeek's.

    Weights start with a spread of width^-0.5: at the customary 0.02, attention is all but uniform in a model this
    narrow, and learns slowly.
    """
    return MLAConfig(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=512, qk_nope_head_dim=32, v_head_dim=32,
        initializer_range=256**-0.5,
    )  # fmt: skip


def shown(prompter: Prompter, lesson: Lesson, seed: int) -> str:
    """A lesson's prompt without a budget, for the tokenizer."""
    return prompter.render(lesson.task.window, lesson.task.intent, seed).text


def say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def card(options: argparse.Namespace, lessons: list[Lesson], model: MLAForCausalLM, states: list[State]) -> str:
    """The model card."""
    parameters = sum(p.numel() for p in model.parameters())
    windows = len({lesson.task.window.window_id for lesson in lessons})
    last = [row["loss"] for row in states[-1].trace[-100:] if "loss" in row]
    steps, tokens = (sum(getattr(state, name) for state in states) for name in ("step", "tokens"))
    settings = ", ".join(f"{name} {value}" for name, value in sorted(vars(options).items()) if name != "name")
    return f"""# {options.name}

A causal language model with multi-head latent attention ({parameters:,} parameters), trained from nothing to rank the
candidates of generated windows and to cite their evidence; with a tokenizer of its own. It writes certificates and
nothing else. Made by `make train-base NAME={options.name}`.

- {len(lessons):,} instances of {windows:,} generated windows, closed rosters
- {steps:,} steps, {tokens:,} tokens; loss per answer token over the last 100 steps {sum(last) / len(last):.4f}
- {settings}

It knows the words of the generated corpus; other text it spells in small pieces. Train it further (stage `sft`) before
use on a corpus.
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m stages.sft.base", description="Train tiny-mla from nothing.")
    parser.add_argument("name", help="it is kept as models/fitted/NAME/policy")
    parser.add_argument("--windows", type=int, default=4000, help="generated, with the difficulty of ingest.sample")
    parser.add_argument("--instances", type=int, default=7000, help="about so many of them are taught")
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=[384, 768, 1280], help="tokens of a prompt, per phase"
    )
    parser.add_argument("--epochs", type=int, default=1, help="passes per phase")
    parser.add_argument("--batch", type=int, default=4, help="instances per step")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--prompt-weight", type=float, default=0.2, help="of a prompt's token in the loss")
    parser.add_argument("--vocabulary", type=int, default=4096)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run("base", partial(main, parse(sys.argv[1:])))
