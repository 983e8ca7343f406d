"""Stage `rank_policy`: ordered, certified lists written by a language model, one system in one roster setting.

For every kept window of `rank.splits` and every registered intent, the policy reads the window (`pipeline.prompts`,
under the names of the seed and epoch 0) and writes a list with certificates; `systems.py` says how each system asks and
which answer counts. What it wrote is parsed strictly and never repaired, `pipeline.rankings` has each entry checked
and put to the verifier, and the order behind the emitted entries is the reward model's. All texts are kept.

Windows are ranked in shards. A shard's answers are kept under data/.work/rank_policy-<system>-<setting>-<input hash>/
as they are made, so a run that was killed goes on with the next shard and writes the same tables; best_of_rm,
best_of_reward and crew share theirs, so that only the first of them generates. They stay there until the inputs change.

A few instances (`rank_policy.probes`) are then asked again, under other names and with a text planted that asks for
something; the answers are kept for the audit and are on no list (`probes.py`).

How long generating took is the table `timings`, the one output whose values no second run repeats; how long the stage
took is in data/.work/timing/<system>-<setting>.json.

Reads the texts, `data/roster`, `data/trajectories`, `models/reward`, and `models/sft` or `policy.base`; writes
`data/rank/<system>/<setting>`. Every cell of the matrix is a process of its own: `dvc repro rank_policy@sft-closed`, or

    python -m stages.rank_policy sft closed
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import get_args

from pipeline import files, tables
from pipeline.certificates import Limits
from pipeline.engines import Sampling
from pipeline.errors import ParamError
from pipeline.params import Params, PolicySystem
from pipeline.policies import load_base, load_policy
from pipeline.prompts import Prompter
from pipeline.rankings import OVER_BUDGET, Draft, RankingWriter, count_windows
from pipeline.skeletons import MICRO, intents_from_table
from pipeline.stage import progress, run
from pipeline.windows import load_windows
from stages.rank_policy.probes import Prober, row
from stages.rank_policy.questions import Question, Voice
from stages.rank_policy.systems import SYSTEMS, System, talk
from stages.rank_policy.talks import Recorder, converse
from stages.rank_policy.voices import open_voice
from stages.reward.model import RewardModel

SUPERVISED = Path("models/sft")

COUNTS = ("lists", "texts", "prompt_tokens", "tokens", "over_budget", "rounds", "probes")

SHARD = 8
"""Windows whose requests are led together, and at most so many are lost when a run is killed."""


def main(name: str, setting: str, params: Params, voice: Voice | None = None) -> None:
    """Rank every (window, intent) by one system.

    Args:
        name: of the system.
        setting: roster setting.
        params: of all stages.
        voice: who is asked; by default the system's policy.

    Raises:
        ParamError: unknown system or setting.
    """
    system = find(name)
    if setting not in tables.SETTINGS:
        raise ParamError(f"unknown roster setting {setting!r}", mend=f"one of {', '.join(tables.SETTINGS)}")
    began, counts = time.monotonic(), Counter[str]()
    sampling = Sampling(temperature=0.0, seed=params.seed)
    if system.sampled:
        sampling = Sampling(
            temperature=params.rank_policy.temperature, top_p=params.rank_policy.top_p, seed=params.seed
        )  # fmt: skip
    intents = intents_from_table(tables.read("trajectories/skeletons"))
    model = RewardModel.load("models/reward")
    limits = Limits.of(params.verifier)
    accept, margin = (round(x * MICRO) for x in (params.verifier.accept, params.verifier.margin))
    with ExitStack() as stack:
        if voice is None:
            policy = load_base(params.policy.base) if system.base else load_policy(files.check_complete(SUPERVISED))
            voice = stack.enter_context(open_voice(policy, params.rank_policy.engine, params.rank_policy.url))
        prompter = Prompter.of(params, voice.engine.count, voice.specials)
        work = work_folder("samples" if system.sampled else name, setting, voice, sampling, params)
        prober = Prober(params, intents, voice.specials)
        writer = stack.enter_context(RankingWriter(name, setting, more=("timings", "probes")))
        total = count_windows(params.rank.splits)
        windows = progress(load_windows(setting, params.rank.splits), f"{name} {setting}, windows", total)
        number = 0
        while shard := list(islice(windows, SHARD)):
            questions = [
                Question(
                    window, intent, limits, accept, margin, model, prompter, voice, sampling,
                    params.rank_policy.samples, params.rank_policy.retries,
                )
                for window in shard for intent in intents
            ]  # fmt: skip
            recorder = Recorder(voice.engine, work / f"{number:05d}.json")
            drafts = converse([talk(system, question) for question in questions], recorder, sampling)
            probes = [prober.probes(question) for question in questions]
            again = Recorder(voice.engine, work / f"{number:05d}-probes.json")
            answers = iter(converse([talk(system, p.question) for some in probes for p in some], again, sampling))
            for question, draft, some in zip(questions, drafts, probes, strict=True):
                writer.add(question, draft)
                writer.also(question, "timings", [{"seconds": draft.seconds}])
                writer.also(question, "probes", [row(probe, next(answers)) for probe in some])
            counts += counted(drafts)
            counts["rounds"] += recorder.generated + again.generated
            counts["probes"] += sum(map(len, probes))
            number += 1
    seconds = time.monotonic() - began
    facts = {**dict.fromkeys(COUNTS, 0), **counts}
    files.write_json(files.WORK / "timing" / f"{name}-{setting}.json", {**facts, "seconds": round(seconds, 3)})
    print(f"  {writer.summary()}", file=sys.stderr)
    print(
        f"  {facts['texts']} texts of {facts['tokens']} tokens for {facts['prompt_tokens']} read, "
        f"{facts['over_budget']} lists over the budget; {facts['probes']} asked again; "
        f"{facts['rounds']} rounds generated in {seconds:.1f} s",
        file=sys.stderr,
    )


def find(name: str) -> System:
    """The system of this name.

    Raises:
        ParamError: there is none.
    """
    for known in get_args(PolicySystem):
        if known == name:
            return SYSTEMS[known]
    raise ParamError(f"unknown system {name!r}", field="rank_policy.systems", mend=f"one of {', '.join(SYSTEMS)}")


def counted(drafts: Sequence[Draft]) -> Counter[str]:
    """The sampling budget that was spent, and how many lists could not be asked for."""
    rows = [row for draft in drafts for row in draft.generations]
    written = [row for row in rows if row.finish is not None]
    return Counter({
        "lists": len(drafts), "texts": len(written), "tokens": sum(row.tokens for row in written),
        "prompt_tokens": sum(row.prompt_tokens for row in written),
        "over_budget": sum(row.reject_code == OVER_BUDGET for row in rows),
    })  # fmt: skip


def work_folder(asks: str, setting: str, voice: Voice, sampling: Sampling, params: Params) -> Path:
    """Where this run keeps its answers; what was kept for other inputs is removed.

    The hash need not cover the windows: whatever is asked is compared with what was asked (`talks.Recorder`).
    """
    inputs = [
        asks, setting, voice.identity, [sampling.temperature, sampling.top_p, sampling.seed],
        params.policy.model_dump(), params.trajectories.buckets, params.rank_policy.samples, list(params.rank.splits),
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    work = files.WORK / f"rank_policy-{asks}-{setting}-{key}"
    for stale in files.WORK.glob(f"rank_policy-{asks}-{setting}-*"):
        if stale != work:
            shutil.rmtree(stale)
    work.mkdir(parents=True, exist_ok=True)
    return work


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m stages.rank_policy SYSTEM SETTING")
    run(f"rank_policy@{sys.argv[1]}-{sys.argv[2]}", partial(main, sys.argv[1], sys.argv[2]))
