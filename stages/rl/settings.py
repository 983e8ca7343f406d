"""A run's switches, every one of them decided: presets filled in, combinations that make no sense refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ParamError
from pipeline.params import Arm
from stages.rl.controllers import AgpoSettings, widths
from stages.rl.objective import CLIPS, EPS, Aggregation, Clip, Unit

AdvantageKind = Literal["smooth", "group", "group_nostd", "single_stream", "gae"]
RewardKind = Literal["gated", "additive", "rank", "graded", "economy", "contrast"]

SLOT_FLOOR = 0.05
"""Least spread that slot advantages are divided by, as a share of the reward's range: flat slots are frequent."""


@dataclass(frozen=True, slots=True)
class Preset:
    """What an objective asks for where params.yaml says `preset`."""

    unit: Unit
    advantage: AdvantageKind
    loss_agg: Aggregation
    reward: RewardKind
    beta: float


PRESETS: dict[str, Preset] = {
    "ecpo": Preset("slot", "smooth", "slot_mean", "gated", 0.02),
    "grpo": Preset("token", "group", "seq_mean", "rank", 0.0),
    "rank_grpo": Preset("slot", "group", "slot_mean", "rank", 0.0),
    "ppo": Preset("token", "gae", "token_mean", "rank", 0.0),
    "reinforce": Preset("token", "group", "seq_mean", "rank", 0.0),
}


@dataclass(frozen=True, slots=True)
class Decided:
    """The switches that presets and shorthands stand behind; everything else is in `arm`.

    Args:
        eps: lower and upper width of a fixed clip.
        agpo: what the controllers are told.
        probe: size of the probe group drawn beside every train group; 0 is none.
        reach: length of the interval that a reward lies in.
    """

    arm: Arm
    unit: Unit
    clip: Clip
    temperature: Literal["fixed", "agpo"]
    advantage: AdvantageKind
    loss_agg: Aggregation
    reward: RewardKind
    beta: float
    eps: tuple[float, float]
    agpo: AgpoSettings
    probe: int

    def reach(self, k: int) -> float:
        """Length of the interval that the reward of a list of at most k entries lies in."""
        shaping = self.arm.shaping
        if self.reward == "additive":
            return 1 + shaping.certificate + shaping.cycle + 0.1 * k
        return 1 + 2 * shaping.contrast if self.reward == "contrast" else 1.0

    def summary(self) -> dict[str, object]:
        """For the model card."""
        return {
            "objective": self.arm.objective, "credit_unit": self.unit, "clip": self.clip, "advantage": self.advantage,
            "temperature": self.temperature, "loss_agg": self.loss_agg, "reward": self.reward, "beta": self.beta,
        }  # fmt: skip


def decide(arm: Arm) -> Decided:
    """Fill presets in and check what fits together.

    Raises:
        ParamError: a combination that is refused; names the switch.
    """
    preset = PRESETS[arm.objective]
    unit: Unit = preset.unit if arm.credit_unit == "preset" else arm.credit_unit
    both = arm.controller == "agpo"
    clip: Clip = "agpo" if both and arm.clip == "fixed" else arm.clip
    temperature: Literal["fixed", "agpo"] = "agpo" if both else arm.temperature
    advantage: AdvantageKind = preset.advantage if arm.advantage == "preset" else arm.advantage
    loss_agg: Aggregation = preset.loss_agg if arm.loss_agg == "preset" else arm.loss_agg
    reward: RewardKind = preset.reward if arm.reward == "preset" else arm.reward
    beta = preset.beta if arm.ref_kl.beta == "preset" else arm.ref_kl.beta
    eps = EPS[unit] if arm.eps == "unit" else (arm.eps[0], arm.eps[1])
    steers = clip == "agpo" or temperature == "agpo"
    probe = arm.agpo.probe_size if steers and arm.agpo.probe_source == "fresh" else 0
    found = Decided(
        arm, unit, clip, temperature, advantage, loss_agg, reward, beta, eps, _controllers(arm, unit), probe
    )  # fmt: skip
    _check(found)
    return found


def _controllers(arm: Arm, unit: Unit) -> AgpoSettings:
    own = arm.agpo
    low, base, high = widths(unit, None if own.eps_base == "unit" else own.eps_base)
    published = own.preset == "published"
    return AgpoSettings(
        tau_base=arm.tau, tau_min=own.tau_min, tau_max=own.tau_max, lambda_temp=own.lambda_temp, w_r=own.w_r,
        w_e=own.w_e, w_k=own.w_k, alpha=own.alpha, gamma=own.gamma, delta=own.delta, zeta=own.zeta, h_min=own.h_min,
        h_max=own.h_max, sequential=published, debias=not published, eps_min=low,
        eps_base=base, eps_max=high, u_floor=1e-8 if published else 0.05,
    )  # fmt: skip


def _check(found: Decided) -> None:
    arm = found.arm
    if found.clip not in CLIPS[found.unit]:
        raise ParamError(
            f"{found.clip} does not fit credit_unit {found.unit}: its formula is about another ratio",
            field="rl.clip", mend=f"take one of {', '.join(CLIPS[found.unit])}",
        )  # fmt: skip
    ppo, single = arm.objective == "ppo", found.advantage == "single_stream"
    if ppo and (found.advantage != "gae" or found.unit != "token"):
        raise ParamError("ppo has advantages of its own, token by token", field="rl.advantage", mend="leave the preset")
    if single != (arm.group_size == 1) and not ppo:
        raise ParamError(
            "single_stream takes one rollout per prompt, every other advantage compares several",
            field="rl.group_size", mend="set group_size 1 with single_stream, 2 or more otherwise",
        )  # fmt: skip
    if single and found.unit == "slot":
        raise ParamError("a single stream has no credit by slot", field="rl.credit_unit", mend="token or sequence")
    if found.temperature == "agpo" and arm.agpo.probe_source == "train":
        raise ParamError(
            "the train group cannot set its own temperature", field="rl.agpo.probe_source", mend="fresh or previous"
        )
    if arm.resample and (single or ppo):
        raise ParamError("only groups can be without signal", field="rl.resample", mend="set it to 0")
    if arm.minibatches_per_rollout > arm.prompts:
        raise ParamError(f"more than the {arm.prompts} prompts", field="rl.minibatches_per_rollout")
