"""Typed parameters: one model per section of params.yaml; an unknown key, a missing key or a wrong type is an error.

The file is read with the YAML 1.2 parser that DVC itself uses, so `on`, `off` and `1e-8` mean the same to both.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import ParamError

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Setting = Literal["closed", "predicted", "hybrid"]
System = Literal["rm_attach", "rule_attach", "rm_cert", "random", "cite_all", "shuffled"]
PolicySystem = Literal[
    "zero_shot", "sft", "sft_grammar", "sft_json", "retry", "best_of_rm", "best_of_reward", "crew", "posthoc"
]

_RUN = re.compile(r"[a-z][a-z0-9_]*")


def _distinct(values: list[str]) -> list[str]:
    if len(set(values)) != len(values):
        raise ValueError("the same name stands twice")
    return values


class Section(BaseModel):
    """A section: immutable, no unknown keys, no silent conversions between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Sample(Section):
    windows: Count
    documents: Count
    followers: Count
    distractors: Annotated[int, Field(ge=0)]
    plan_steps: Annotated[int, Field(ge=2, le=4)]
    role_swaps: Share
    aliases: Share
    shared_surnames: Share
    out_of_order: Share
    repeats: Share
    remote_arguments: Share
    ambiguous_triggers: Share
    ambiguous_roles: Share
    corrections: Share
    novelty: Share
    unreal: Annotated[float, Field(ge=0, le=5)]
    hidden_cues: Share
    disputed: Share
    noise: Annotated[float, Field(ge=0, le=5)]


class Ingest(Section):
    source: Literal["sample", "rams", "maven_ere", "casie", "jsonl"]
    path: str
    on_error: Literal["fail", "quarantine"]
    splits: str
    sample: Sample


class Encoder(Section):
    """What the encoder is, how it reads and how it is trained.

    Args:
        base: folder of a Hugging Face encoder (safetensors), or the name of an installed package that carries one.
        frozen: its lowest layers that stay as they are; their output is computed once per training.
        chunk: word pieces per forward pass, special ones included.
        context: word pieces of the neighbouring text on either side that a chunk sees but does not answer for.
        epochs: passes over the train split.
        batch: word pieces per training step, padding included.
        rate, head_rate: peak learning rates of the encoder's upper layers and of the heads.
        checkpoint: training steps between two checkpoints.
        precision: of the encoder's matrix products. bfloat16 is much faster on processors that have it (AVX512-BF16,
            AMX) and slower on others; the results differ in the third digit.
    """

    base: str
    frozen: Annotated[int, Field(ge=0)]
    chunk: Annotated[int, Field(ge=32, le=512)]
    context: Annotated[int, Field(ge=0, le=128)]
    epochs: Count
    batch: Count
    rate: Rate
    head_rate: Rate
    checkpoint: Count
    precision: Literal["float32", "bfloat16"]

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.chunk - 2 * self.context < 16:
            raise ValueError("context: less than 16 pieces of a chunk are left between its two contexts")
        return self


class Extract(Section):
    model: Literal["linear", "encoder", "stacked"]
    from_: str = Field(alias="from")
    lattice: Annotated[float, Field(gt=0, le=1)]
    trigger_floor: Annotated[float, Field(gt=0, le=1)]
    mention_floor: Annotated[float, Field(gt=0, le=1)]
    train_windows: Count
    triggers: str
    cross_fit: bool
    encoder: Encoder


class Roster(Section):
    settings: Annotated[list[Setting], Field(min_length=1), AfterValidator(_distinct)]
    candidate_kind: Literal["auto", "entity", "event_chain"]
    min_candidates: Annotated[int, Field(ge=2)]
    max_k: Count
    merge_iou: Annotated[float, Field(gt=0, le=1)]


class Trajectories(Section):
    buckets: Annotated[list[Share], Field(min_length=2, max_length=2)]
    negatives: bool

    @field_validator("buckets")
    @classmethod
    def _descending(cls, buckets: list[float]) -> list[float]:
        if buckets[0] <= buckets[1]:
            raise ValueError("must descend: [high, medium]")
        return buckets


class Reference(Section):
    match_iou: Share


class Reward(Section):
    from_: str = Field(alias="from")
    setting: Setting
    graph: bool
    instances: Count
    l2: Annotated[float, Field(gt=0)]
    pair_weight: Annotated[float, Field(ge=0)]
    bootstrap: Count


class Policy(Section):
    base: str
    template: str
    budget: Annotated[int, Field(ge=64)]
    steps: Literal["fitting", "all"]


class Sft(Section):
    runs: Annotated[list[Literal["sft"]], Field(max_length=1)]
    settings: Annotated[list[Setting], Field(min_length=1), AfterValidator(_distinct)]
    instances: Count
    epochs: Count
    batch: Count
    rate: Rate
    patience: Annotated[int, Field(ge=0)]
    tune_windows: Count
    lora: Annotated[int, Field(ge=0)]
    precision: Literal["float32", "bfloat16"]
    checkpoint: Count


class Agpo(Section):
    """AGPO's controllers (`stages.rl.controllers` says what each number does)."""

    preset: Literal["corrected", "published"]
    probe_source: Literal["fresh", "previous", "train"]
    probe_size: Count
    tau_min: Annotated[float, Field(gt=0)]
    tau_max: Annotated[float, Field(gt=0)]
    lambda_temp: Annotated[float, Field(ge=0)]
    eps_base: Literal["unit"] | Annotated[float, Field(gt=0)]
    alpha: float
    gamma: Annotated[float, Field(ge=0)]
    delta: Annotated[float, Field(ge=0)]
    zeta: Annotated[float, Field(ge=0)]
    h_min: Annotated[float, Field(gt=0)]
    h_max: Annotated[float, Field(gt=0)]
    w_r: Annotated[float, Field(ge=0)]
    w_e: Annotated[float, Field(ge=0)]
    w_k: Annotated[float, Field(ge=0)]
    dispersion: Literal["std", "mad", "iqr"]
    vote_key: Literal["slot_mean", "top1", "set", "list"]
    vote_invalid: Literal["drop", "unique"]
    shuffle: bool


class RefKl(Section):
    beta: Literal["preset"] | Annotated[float, Field(ge=0)]
    estimator: Literal["k3_is", "k2", "k3", "k1_parity"]


class Shaping(Section):
    """Weights of the rewards `additive` (certificate, cycle), `graded`, `economy` and `contrast`."""

    certificate: Annotated[float, Field(ge=0)]
    cycle: Annotated[float, Field(ge=0)]
    graded: Annotated[float, Field(ge=0, lt=1)]
    economy: Share
    contrast: Annotated[float, Field(ge=0)]


class Arm(Section):
    """One run of reinforcement learning; docs/rl.md explains every switch. `preset`: what the objective asks for."""

    settings: Annotated[list[Setting], Field(min_length=1), AfterValidator(_distinct)]
    instances: Count
    objective: Literal["ecpo", "grpo", "rank_grpo", "ppo", "reinforce"]
    credit_unit: Literal["preset", "slot", "token", "sequence"]
    slot_return: Literal["to_go", "own", "list"]
    reward: Literal["preset", "gated", "additive", "rank", "graded", "economy", "contrast"]
    clip: Literal["fixed", "agpo", "dcpo", "sapo", "gspo"]
    eps: Literal["unit"] | Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]
    advantage: Literal["preset", "smooth", "group", "group_nostd", "single_stream"]
    loss_agg: Literal["preset", "slot_mean", "seq_mean", "token_mean", "const"]
    temperature: Literal["fixed", "agpo"]
    tau: Annotated[float, Field(gt=0, le=10)]
    controller: Literal["off", "agpo"]
    mismatch: Literal["icepop", "tis", "off"]
    mismatch_level: Literal["token", "sequence"]
    prefix_sharing: Literal["split", "block_mask", "off"]
    guard: Annotated[list[Literal["gtpo", "llds"]], AfterValidator(_distinct)]
    validity: Literal["grammar", "lagrange"]
    value_trunk: Literal["shared", "separate"]
    ref_kl: RefKl
    shaping: Shaping
    agpo: Agpo
    strict: bool
    steps: Count
    tokens: Annotated[int, Field(ge=0)]
    prompts: Count
    group_size: Count
    updates_per_rollout: Count
    minibatches_per_rollout: Count
    resample: Annotated[int, Field(ge=0)]
    rate: Rate
    warm_up: Annotated[int, Field(ge=0)]
    judge_windows: Annotated[int, Field(ge=0)]
    judge_every: Count
    checkpoint: Count
    patience: Annotated[int, Field(ge=0)]


class Rl(Arm):
    """Shared settings, and named runs with what each changes."""

    runs: Annotated[list[str], AfterValidator(_distinct)]
    matrix: dict[str, dict[str, Any]]

    def arm(self, run: str) -> Arm:
        """The settings of a run, its changes merged into the shared ones."""
        shared = self.model_dump(exclude={"runs", "matrix"})
        return Arm.model_validate(_merged(shared, self.matrix[run]))

    @model_validator(mode="after")
    def _runs(self) -> Self:
        for run in self.matrix:
            if not _RUN.fullmatch(run):
                raise ValueError(f"matrix: {run!r} is no name of lower-case letters, digits and _")
            try:
                self.arm(run)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                where = ".".join(map(str, first["loc"]))
                raise ValueError(f"matrix.{run}.{where}: {first['msg']}") from None
        if unknown := [run for run in self.runs if run not in self.matrix]:
            raise ValueError(f"runs: {unknown[0]!r} is not in matrix")
        return self


def _merged(into: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    out = dict(into)
    for key, value in changes.items():
        inner = out.get(key)
        out[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return out


class Verifier(Section):
    accept: Share
    margin: Share
    max_handles: Count
    slot_characters: Count
    bundle_share: Share
    bundle_characters: Count


class Rank(Section):
    systems: Annotated[list[System], Field(min_length=1), AfterValidator(_distinct)]
    splits: Annotated[list[Literal["train", "tune", "test"]], Field(min_length=1)]


class Probes(Section):
    """What is asked again for the audit.

    Args:
        instances: drawn by hash from the ranked ones; 0 asks nothing again.
        renderings: how often each is asked under other names and in another order.
        attacks: file of texts, see `stages/rank_policy/attacks.yaml`.
        planted: how many of the attacks are planted in each instance, one at a time; with any, also one harmless text.
    """

    instances: Annotated[int, Field(ge=0)]
    renderings: Annotated[int, Field(ge=0)]
    attacks: str
    planted: Annotated[int, Field(ge=0)]


class RankPolicy(Section):
    """How policies rank.

    Args:
        systems: see `stages.rank_policy.systems`.
        samples: of best_of_rm, best_of_reward and crew.
        temperature, top_p: of these samples; everything else is greedy.
        retries: how often `retry` asks again, at most.
        engine: what generates.
        url: of a vLLM server that runs already; "" starts one.
        probes: what is asked again, for the audit.
    """

    systems: Annotated[list[PolicySystem], AfterValidator(_distinct)]
    samples: Count
    temperature: Annotated[float, Field(gt=0, le=10)]
    top_p: Rate
    retries: Annotated[int, Field(ge=0)]
    engine: Literal["transformers", "vllm"]
    url: str
    probes: Probes

    @model_validator(mode="after")
    def _served(self) -> Self:
        if self.url and self.engine != "vllm":
            raise ValueError("url: only the engine vllm talks to a server")
        return self


class Heldout(Section):
    share: Annotated[float, Field(gt=0, le=1)]


class Audit(Section):
    bootstrap: Annotated[int, Field(ge=1000)]
    permutations: Count
    gold_iou: Annotated[float, Field(gt=0, le=1)]
    sweep_accept: list[Share]
    sweep_margin: list[Share]


class Report(Section):
    windows: Annotated[int, Field(ge=0)]


class Params(Section):
    """The whole of params.yaml."""

    seed: int
    ingest: Ingest
    extract: Extract
    roster: Roster
    trajectories: Trajectories
    reference: Reference
    reward: Reward
    policy: Policy
    sft: Sft
    rl: Rl
    verifier: Verifier
    rank: Rank
    rank_policy: RankPolicy
    heldout: Heldout
    audit: Audit
    report: Report


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml.

    Raises:
        ParamError: missing file, not YAML, duplicate or unknown key, missing key, wrong type or value.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            raw = YAML(typ="safe", pure=True).load(file)
    except FileNotFoundError:
        raise ParamError("file not found", file=path, mend="run from the root of the repository") from None
    except IsADirectoryError:
        raise ParamError("a folder, not a file", file=path) from None
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error)
        raise ParamError(f"not valid YAML: {what}", file=path, line=mark.line + 1 if mark else None) from None
    return parse_params(raw, path)


def parse_params(raw: Any, path: str | Path = "params.yaml") -> Params:
    """Check an already parsed params.yaml; errors as in `load_params`."""
    if not isinstance(raw, dict):
        raise ParamError("expected a mapping of sections", file=path)
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        known = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            known = "missing key"
        shown = "" if first["type"] == "missing" else f" (got {first['input']!r})"
        raise ParamError(f"{known}{shown}"[:300], file=path, field=field) from None
