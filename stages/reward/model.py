"""The reward model R_θ(τ, S) = θ · φ(τ, S), as it is stored and as it scores; fitting it stands in `fit.py`.

A score compares the candidates of one window under one skeleton and means nothing across windows: φ is standardised
over the roster. Scoring is numpy only, so ranking does not load torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from pipeline import files
from pipeline.certificates import Limits
from pipeline.errors import DataError
from pipeline.skeletons import Skeleton
from pipeline.windows import Window
from stages.reward.features import FUNCTIONS, FloatArray, Judge, raw, standardise

FORMAT = 1
STANDARDISATION = "per window and skeleton over the roster: (x - mean) / population standard deviation, constant -> 0"


@dataclass(frozen=True)
class RewardModel:
    """θ with what is needed to compute φ in the same way again.

    Args:
        names: feature names.
        theta: (features,) weights of standardised features.
        judge: the verifier's settings that the certifiability features were computed with.
        facts: what was fitted on what, and the report; JSON, carried along and not used for scoring.
    """

    names: tuple[str, ...]
    theta: FloatArray
    judge: Judge
    facts: dict[str, Any]

    def scores(self, window: Window, skeleton: Skeleton) -> FloatArray:
        """(candidates,) scores in the order of `window.candidates`; the higher the better."""
        return self.scores_of(window, [skeleton])[0]

    def scores_of(self, window: Window, skeletons: Sequence[Skeleton]) -> list[FloatArray]:
        """Scores under several skeletons; what does not depend on the skeleton is computed once."""
        matrices = raw(window, skeletons, self.judge, self.names)
        return [self.apply(standardise(rows, rows)) for rows in matrices]

    def apply(self, rows: FloatArray) -> FloatArray:
        """θ·φ of standardised rows, summed feature by feature so that a row's score depends on that row alone."""
        total = np.zeros(len(rows), dtype=np.float64)
        for column, weight in enumerate(self.theta):
            total += rows[:, column] * weight
        return total

    def save(self, folder: Path) -> None:
        """Write model.safetensors and config.json into an existing folder."""
        save_file({"theta": np.ascontiguousarray(self.theta)}, folder / "model.safetensors")
        config = {
            "format": FORMAT,
            "features": list(self.names),
            "standardisation": STANDARDISATION,
            "verifier": {
                "accept": self.judge.accept, "margin": self.judge.margin, "limits": asdict(self.judge.limits),
            },
            "facts": self.facts,
        }  # fmt: skip
        files.write_json(folder / "config.json", config)

    @classmethod
    def load(cls, folder: str | Path) -> RewardModel:
        """Read a published model.

        Raises:
            DataError: incomplete or changed files, another format, an unknown feature, weights of another length.
        """
        folder = files.check_complete(folder)
        config = files.read_json(folder / "config.json")
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            raise DataError(f"not a reward model of format {FORMAT}", file=folder / "config.json")
        names = tuple(config["features"])
        if unknown := [name for name in names if name not in FUNCTIONS]:
            raise DataError(f"unknown feature {unknown[0]!r}", file=folder / "config.json", field="features")
        theta = load_file(folder / "model.safetensors")["theta"]
        if theta.shape != (len(names),) or theta.dtype != np.float64 or not np.isfinite(theta).all():
            raise DataError(f"theta is not {len(names)} finite float64 weights", file=folder / "model.safetensors")
        settings = config["verifier"]
        judge = Judge(Limits(**settings["limits"]), settings["accept"], settings["margin"])
        return cls(names, theta, judge, config["facts"])
