"""Train tiny-mla from nothing: `python -m stages.sft.base NAME` writes models/fitted/NAME/policy (`make train-base`).

A base policy is an input of the pipeline like any other pretrained model, so this is no stage: it takes up to an hour.
The model reads generated windows (`synthetic.py`), first about few of their candidates, then whole ones
(`curriculum.py`). It starts from weights that relate the tokens of a prompt already (`initial.py`). Killed, it goes on
from its last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from stages.sft.curriculum import portion
from stages.sft.initial import initialise
from stages.sft.lessons import Lesson, Teacher, read_lessons
from stages.sft.tokenizer import END, SPECIAL, train_tokenizer
from stages.sft.training import Course, Settings, State, Training

FITTED = Path("models/fitted")
TOKENIZED = 600
"""Lessons that the tokenizer is fitted on."""
TOKENS = 2048
"""That go through the model at once: little enough for a processor's caches."""


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
    spelled = {i: tokenizer.decode([i], skip_special_tokens=False) for i in range(tokenizer.get_vocab_size())}
    initialise(mla, spelled, own.seed)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text).ids

    prompter = Prompter.of(params, lambda text: len(encode(text)), SPECIAL)
    states, begin = list[State](), 0
    for number, phase in enumerate(options.phases):
        how = Settings(
            epochs=1, batch=phase.batch, rate=options.rate, precision=options.precision, tokens=TOKENS,
            seed=own.seed + number,
        )  # fmt: skip
        say(f"phase {number + 1} of {len(options.phases)}: {phase}")
        taught = list(portion(lessons, begin, phase.lessons, phase.candidates, own.seed))
        course = Course(taught, Teacher(prompter, encode, encode, end, own.seed + number))
        states.append(Training(mla, course, how, work / f"phase{number}", say).run())
        begin += phase.lessons
    with publish_directory(FITTED / options.name / "policy") as folder:
        save_policy(make_policy(mla.bfloat16(), tokenizer, end=END, name=options.name), folder)
        write_text(folder / "README.md", card(options, lessons, mla, states))


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the training: so many lessons about at most so many candidates (0: all), so many of them per step."""

    candidates: int
    lessons: int
    batch: int

    @classmethod
    def read(cls, text: str) -> Phase:
        """From `CANDIDATES:LESSONS:BATCH`.

        Raises:
            ValueError: it is not of that form.
        """
        candidates, lessons, batch = map(int, text.split(":"))
        if candidates < 0 or lessons < 1 or batch < 1:
            raise ValueError(text)
        return cls(candidates, lessons, batch)

    def __str__(self) -> str:
        return f"{self.candidates}:{self.lessons}:{self.batch}"


def shape(vocabulary: int) -> MLAConfig:
    """Sizes of tiny-mla; latent and rotary widths are DeepSeek's, the others what `initial.py` divides up.

    Weights without a task start with a spread of width^-0.5: at the customary 0.02, attention is all but uniform in a
    model this narrow, and learns slowly.
    """
    return MLAConfig(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=384, num_hidden_layers=3, qk_nope_head_dim=64,
        v_head_dim=64, tie_word_embeddings=False, initializer_range=256**-0.5,
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
    settings = ", ".join(
        f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in sorted(vars(options).items())
        if name != "name"
    )
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
    parser.add_argument("--windows", type=int, default=3000, help="generated, with the difficulty of ingest.sample")
    parser.add_argument("--instances", type=int, default=2000, help="about so many of them are taught")
    parser.add_argument(
        "--phases", type=Phase.read, nargs="+", default=[Phase(0, 560, 8)],
        metavar="CANDIDATES:LESSONS:BATCH", help="what is taught in turn; 0 candidates: all of a window",
    )  # fmt: skip
    parser.add_argument("--rate", type=float, default=4e-4, help="peak learning rate")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16", help="of matrix products")
    parser.add_argument("--vocabulary", type=int, default=4096)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run("base", partial(main, parse(sys.argv[1:])))
