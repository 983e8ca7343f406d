"""Stage `rank`: ordered, certified lists of one system in one roster setting.

For every kept window of `rank.splits` and every registered intent, the system (`systems.py`) orders the roster and
emits a prefix of the order with certificates; `pipeline.rankings` has each emitted entry checked for validity and put
to the verifier, completes the order to K, and writes rankings, certificates and the raw compact form. Which instances
count is decided later, by the audit, which alone may know.

Reads the texts, `data/roster`, `data/trajectories`, `models/reward`; writes `data/rank/<system>/<setting>`. Every cell
of the matrix is a process of its own: `dvc repro rank@random-closed`, or

    python -m stages.rank random closed
"""

from __future__ import annotations

import sys
from functools import partial

from pipeline import tables
from pipeline.certificates import Limits
from pipeline.errors import ParamError
from pipeline.params import Params
from pipeline.rankings import RankingWriter, count_windows
from pipeline.skeletons import MICRO, intents_from_table
from pipeline.stage import progress, run
from pipeline.windows import load_windows
from stages.rank.systems import SYSTEMS, Question
from stages.reward.model import RewardModel


def main(system: str, setting: str, params: Params) -> None:
    """Rank every (window, intent) by one system.

    Raises:
        ParamError: unknown system or setting.
    """
    if system not in SYSTEMS:
        raise ParamError(f"unknown system {system!r}", field="rank.systems", mend=f"one of {', '.join(SYSTEMS)}")
    if setting not in tables.SETTINGS:
        raise ParamError(f"unknown roster setting {setting!r}", mend=f"one of {', '.join(tables.SETTINGS)}")
    answer = SYSTEMS[system]
    intents = intents_from_table(tables.read("trajectories/skeletons"))
    model = RewardModel.load("models/reward")
    limits = Limits.of(params.verifier)
    accept, margin = (round(x * MICRO) for x in (params.verifier.accept, params.verifier.margin))
    total = count_windows(params.rank.splits)
    with RankingWriter(system, setting) as writer:
        for window in progress(load_windows(setting, params.rank.splits), f"{system} {setting}, windows", total):
            for intent in intents:
                question = Question(window, intent, limits, accept, margin, model, params.seed)
                writer.add(question, answer(question))
    print(f"  {writer.summary()}", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m stages.rank SYSTEM SETTING")
    run(f"rank@{sys.argv[1]}-{sys.argv[2]}", partial(main, sys.argv[1], sys.argv[2]))
