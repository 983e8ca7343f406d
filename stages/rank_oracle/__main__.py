"""Stage `rank_oracle`: the cap on CertNDCG that the extraction allows (`pipeline.oracle`), from gold of every split.

Reads what `rank` reads but for the reward model, and `data/reference/audit`; writes `data/rank/oracle/<setting>`. Run
it with `dvc repro rank_oracle@closed`, or alone with

    python -m stages.rank_oracle closed
"""

from __future__ import annotations

import sys
from functools import partial

from pipeline import tables
from pipeline.certificates import Limits
from pipeline.errors import ParamError
from pipeline.oracle import best, graded
from pipeline.params import Params
from pipeline.rankings import RankingWriter, Task, count_windows
from pipeline.skeletons import MICRO, intents_from_table
from pipeline.stage import progress, run
from pipeline.windows import load_windows


def main(setting: str, params: Params) -> None:
    """Rank every (window, intent) by gold grade.

    Raises:
        ParamError: unknown setting.
    """
    if setting not in tables.SETTINGS:
        raise ParamError(f"unknown roster setting {setting!r}", mend=f"one of {', '.join(tables.SETTINGS)}")
    intents = intents_from_table(tables.read("trajectories/skeletons"))
    limits = Limits.of(params.verifier)
    accept, margin = (round(x * MICRO) for x in (params.verifier.accept, params.verifier.margin))
    total = count_windows(params.rank.splits)
    windows = progress(load_windows(setting, params.rank.splits), f"oracle {setting}, windows", total)
    with RankingWriter("oracle", setting) as writer:
        for window, grades in graded(windows, setting, "audit"):
            for intent in intents:
                task = Task(window, intent, limits, accept, margin)
                writer.add(task, best(task, grades.get(intent.intent_id, {})))
    print(f"  {writer.summary()}", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m stages.rank_oracle SETTING")
    run(f"rank_oracle@{sys.argv[1]}", partial(main, sys.argv[1]))
