"""The training loop: sample, judge, credit, update; one rollout batch after the other, resumed to the bit after a kill.

One rollout batch, in this order (AGPO, arXiv 2605.20722): the weights stand still; a probe group per prompt, if the
controllers want one, sets its temperature; the train group is drawn and judged; log-probabilities and entropies under
these weights are kept; advantages and clip widths are decided and kept per sample; `updates_per_rollout` times
`minibatches_per_rollout` optimiser steps; one more forward tells how far the policy went. Probe rollouts never enter a
gradient. The model stays in evaluation mode throughout, so nothing but the weights tells two passes apart.

Everything random follows from (seed, rollout batch, instance), so a checkpoint between rollout batches is weights,
optimiser and `Memory`.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import DataError
from pipeline.files import check_complete, publish_directory, read_json, write_json
from pipeline.windows import stable_seed
from stages.extract.encoder.train import reproducible
from stages.rl import credit, objective
from stages.rl.advantages import gae
from stages.rl.controllers import Agpo, Budget, InertWatch, Multiplier, check_inert
from stages.rl.credit import Facts, Memory
from stages.rl.guards import Watch
from stages.rl.reward import late_flips, slot_gains
from stages.rl.rollout import Asked, Sampler
from stages.rl.settings import Decided
from stages.rl.statistics import Statistics
from stages.rl.tasks import Instance
from stages.rl.updates import Learner, Lot, whiten
from stages.rl.world import World

CHECK_EVERY = 50
"""Rollout batches between two comparisons of the processes' memories."""

Say = Callable[[str], None]
Log = Callable[[int, dict[str, float]], None]
Judge = Callable[[], dict[str, float]]


@dataclass(slots=True)
class State:
    """Where a training stands.

    Attributes:
        step: rollout batches done.
        updates: optimiser steps done.
        best: best judgement so far and its step, None before the first.
        trace: one row per rollout batch.
        over: whether the token budget is spent.
    """

    step: int = 0
    updates: int = 0
    best: tuple[float, int] | None = None
    trace: list[dict[str, float]] = field(default_factory=list)
    over: bool = False


class Trainer:
    """One run.

    Args:
        decided: its switches.
        sampler: asks the policy, whose model is trained in place.
        instances: what is asked.
        work: scratch directory; a checkpoint of this very run there is gone on from.
        say: told about progress.
        log: told every rollout batch's metrics, those before a resume included, in order.
        judge: how good the policy is now, its first figure the one that counts; None: the last weights are taken.
        world: this process among others.
    """

    def __init__(
        self, decided: Decided, sampler: Sampler, instances: Sequence[Instance], work: Path, say: Say,
        log: Log | None = None, judge: Judge | None = None, world: World | None = None,
    ) -> None:  # fmt: skip
        if not instances:
            raise DataError("no train instance in which anything can be certified", mend="see `certrank summary`")
        arm = decided.arm
        self.decided, self.arm, self.sampler, self.instances = decided, arm, sampler, instances
        self.folder, self.say, self.log, self.judge = work / "checkpoint", say, log or (lambda step, row: None), judge
        self.world = world or World()
        self.learner = Learner(decided, sampler.policy.plain.eval(), self.world)
        check_inert(decided.clip, arm.updates_per_rollout, arm.minibatches_per_rollout, strict=arm.strict)
        self.memory = Memory(Agpo(decided.agpo), Budget(arm.tokens), Multiplier(), InertWatch())
        self.watch, self.state = Watch(arm.patience), State()
        self.best: dict[str, Tensor] = {}
        self.last: dict[str, dict[str, Any]] = {}
        """single_stream: each prompt's last rollout, for how far the policy has moved since."""
        self.key = self._key()

    def run(self, stop: int | None = None) -> State:
        """Train to the end (or until rollout batch `stop`, as if killed right after it: for tests); the best weights
        are left in the model where there is a judge."""
        with reproducible(self.sampler.seed):
            self._resume()
            for row in self.state.trace:
                self.log(int(row["step"]), {name: value for name, value in row.items() if name != "step"})
            said = time.monotonic()
            while self.state.step < self.arm.steps and not self.state.over:
                row = self._batch(self.state.step)
                self._done(row)
                if time.monotonic() - said > 20:
                    said = time.monotonic()
                    self.say(f"rollout batch {self.state.step} of {self.arm.steps}: reward {row['reward/mean']:.4f}")
                if self.state.step == stop:
                    return self.state
            self._save()
            if self.memory.budget.over:
                self.say(f"{self.memory.budget.spent} tokens generated, {self.memory.budget.overshoot} past the budget")
            if self.best:
                self.learner.load(self.best)
        return self.state

    def _done(self, row: dict[str, float]) -> None:
        """After a rollout batch: judge, log, keep, stop where it has collapsed."""
        state, last = self.state, self.state.step + 1 == self.arm.steps or self.memory.budget.over
        state.step, state.over = state.step + 1, self.memory.budget.over
        state.updates = self.learner.steps
        if self.judge is not None and (state.step % self.arm.judge_every == 0 or last):
            found = self.judge()
            row |= {f"tune/{name}": value for name, value in found.items()}
            score = next(iter(found.values()))
            if state.best is None or score > state.best[0]:
                state.best = (score, state.step)
                self.best = self.learner.weights()
        state.trace.append({"step": state.step, **row})
        self.log(state.step, row)
        if self.world.size > 1 and state.step % CHECK_EVERY == 0:
            self.world.check_equal(list(self.memory.agpo.state().values()), "the controllers' state")
        self.watch.see(row)
        if state.step % self.arm.checkpoint == 0:
            self._save()

    # one rollout batch

    def _batch(self, step: int) -> dict[str, float]:
        numbers = range(step * self.arm.prompts, (step + 1) * self.arm.prompts)
        mine = [n for n in numbers if n % self.world.size == self.world.rank]
        lots, facts, told, metrics = self._rollouts(step, self._instances(step, mine))
        for attempt in range(self.arm.resample):
            # Prompts whose group says nothing make room for others, at most so often; their tokens are spent.
            flat = {fact.index for fact in facts if fact.flat}
            if not flat:
                break
            others = [n for n in numbers if n in flat and n % self.world.size == self.world.rank]
            fresh = self._rollouts(step, self._instances(step, others, attempt + 1))
            lots = [lot for lot in lots if lot.asked.index not in flat] + fresh[0]
            kept = [i for i, fact in enumerate(facts) if fact.index not in flat]
            pairs = [(facts[i], told[i]) for i in kept] + list(zip(fresh[1], fresh[2], strict=True))
            pairs.sort(key=lambda pair: pair[0].index)
            facts, told = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        if not facts:
            raise DataError("no instance fits the prompt's budget", field="policy.budget", mend="raise it")
        metrics |= self._credit(lots, facts, told, step)
        metrics |= self.learner.updates(lots)
        self.memory.inert.see(self.decided.clip, metrics["clip/ratio_absdev_max"])
        metrics |= self.learner.moved(lots)
        self.memory.agpo.observe_kl(metrics["kl_step"])
        budget = self.memory.budget
        metrics |= {"tokens/probe": budget.probe, "tokens/train": budget.train, "tokens/total": budget.spent}
        return {name: float(value) for name, value in metrics.items()}

    def _instances(self, step: int, numbers: Sequence[int], attempt: int = 0) -> list[Asked]:
        """What is asked: instances in an order drawn anew for every pass, under names drawn anew."""
        out = []
        for number in numbers:
            if self.decided.advantage == "single_stream":
                instance, epoch = self._weighted(step)[number % self.arm.prompts], step
            else:
                at = number if not attempt else (attempt * self.arm.steps + step) * self.arm.prompts + number
                epoch, place = divmod(at, len(self.instances))
                order = np.random.default_rng(stable_seed(self.sampler.seed, "order", epoch))
                instance = self.instances[int(order.permutation(len(self.instances))[place])]
            asked = self.sampler.ask(instance, number, epoch, self.arm.tau)
            if asked is not None:
                out.append(asked)
        return out

    def _weighted(self, step: int) -> list[Instance]:
        """single_stream: prompts drawn without replacement, uncertain ones more often."""
        trackers = self.memory.trackers
        weights = np.array([trackers[i.key].weight if i.key in trackers else 0.55 for i in self.instances])
        random = np.random.default_rng(stable_seed(self.sampler.seed, "weighted", step))
        count = min(self.arm.prompts, len(self.instances))
        drawn = random.choice(len(self.instances), count, replace=False, p=weights / weights.sum()).tolist()
        return [self.instances[drawn[i % count]] for i in range(self.arm.prompts)]

    def _rollouts(
        self, step: int, asked: list[Asked]
    ) -> tuple[list[Lot], list[Facts], list[Statistics], dict[str, float]]:
        """Probe, temperatures, train groups, and their log-probabilities as they are now."""
        sampler, arm = self.sampler, self.arm
        probed, probe_tokens = {}, {}
        if self.decided.probe:
            heats = [arm.tau] * len(asked)
            for one, answers in zip(
                asked, sampler.answers(asked, self.decided.probe, heats, f"{step}|probe"), strict=True
            ):
                judged = [sampler.judged(one, answer) for answer in answers]
                rewards = [math.fsum(row) for row in slot_gains(self.decided.reward, judged, one.instance, arm.shaping)]
                lists = [credit.listed_of(j) for j in judged]
                reach = self.decided.reach(one.instance.k)
                probed[one.index] = credit.observed(self.decided, rewards, lists, reach)
                probe_tokens[one.index] = sum(len(answer.tokens) for answer in answers)
        known = [
            (one.index, probed.get(one.index, self.memory.previous.get(one.instance.key, Statistics())))
            for one in asked
        ]
        everyone = sorted(self.world.gather(known), key=lambda pair: pair[0])
        told = [found for _, found in everyone]
        taus, warm = credit.heats(self.decided, self.memory, told, step, sampler.seed)
        by_index = dict(zip([index for index, _ in everyone], taus, strict=True))
        for one in asked:
            one.heat = by_index[one.index]
        groups = sampler.answers(asked, arm.group_size, [one.heat for one in asked], f"{step}|train")
        lots, own = [], []
        for one, answers in zip(asked, groups, strict=True):
            one.rollouts = [sampler.rollout(one, answer) for answer in answers]
            lots.append(self.learner.lot(one, sampler.width))
            own.append(self._facts(one, lots[-1], probe_tokens.get(one.index, 0)))
        facts = sorted(self.world.gather(own), key=lambda fact: fact.index)
        budget = self.memory.budget
        budget.probe += sum(fact.probe_tokens for fact in facts)
        budget.train += sum(n for fact in facts for n in fact.lengths)
        self.memory.agpo.memory.probe_tokens, self.memory.agpo.memory.train_tokens = budget.probe, budget.train
        if arm.agpo.probe_source == "train":
            told = [self._observed(fact) for fact in facts]
        metrics = {"agpo/tau_min": min(taus, default=arm.tau), "agpo/tau_max": max(taus, default=arm.tau)}
        if warm or self.decided.clip == "agpo":
            metrics |= credit.controller_metrics(self.memory, told, warm)
        return lots, facts, told, metrics

    def _observed(self, fact: Facts) -> Statistics:
        return credit.observed(self.decided, fact.rewards, fact.lists, fact.reach)

    def _facts(self, one: Asked, lot: Lot, probe_tokens: int) -> Facts:
        judged = [rollout.judged for rollout in one.rollouts]
        k, table = one.instance.k, lot.table
        acted = [
            [bool((table.free_GT[g] & (table.slot_GT[g] == i)).any()) for i in range(k)] for g in range(len(judged))
        ]
        flips = late_flips(one.instance.task, judged[0])
        fact = Facts(
            one.index, one.instance.key, self.decided.reach(k),
            slot_gains(self.decided.reward, judged, one.instance, self.arm.shaping), acted,
            [credit.listed_of(j) for j in judged], [j.code for j in judged], [j.certified for j in judged],
            [len(j.entries) for j in judged], [j.rank for j in judged], [len(r.tokens) for r in one.rollouts],
            probe_tokens, (float(lot.entropy_GT[table.free_GT].double().sum()), int(table.free_GT.sum())), 0.0, flips,
        )  # fmt: skip
        if self.decided.advantage == "single_stream":
            fact.drift = self._drift(one)
        return fact

    def _drift(self, one: Asked) -> float:
        """Mean |change of log-probability| of the prompt's last rollout since it was drawn; 0 on the first visit."""
        last = self.last.get(one.instance.key)
        if last is None:
            return 0.0
        then = self.sampler.ask(one.instance, one.index, last["epoch"], last["heat"])
        assert then is not None  # it was asked before
        then.rollouts = [self.sampler.again(then, last["tokens"])]
        now = self.learner.lot(then, self.sampler.width)
        change_T = now.old_GT[0] - torch.tensor(last["log_probs"])
        return float(change_T.abs().sum() / now.table.free_GT.sum().clamp(min=1))

    # credit

    def _credit(self, lots: Sequence[Lot], facts: list[Facts], told: list[Statistics], step: int) -> dict[str, float]:
        """Advantages, clip widths and weights of every token of this process's lots."""
        memory, decided = self.memory, self.decided
        invalid = [listed is None for fact in facts for listed in fact.lists]
        if self.arm.validity == "lagrange":
            for fact in facts:
                credit.penalise(fact, memory.multiplier.value)
            memory.multiplier.see(sum(invalid) / len(invalid))
        found = credit.advantages(decided, memory, facts)
        widths, wide = credit.clip_widths(decided, memory, told, facts, step, self.sampler.seed)
        at = {fact.index: i for i, fact in enumerate(facts)}
        for lot in lots:
            i, slot_GT = at[lot.asked.index], lot.table.slot_GT
            lot.low, lot.high = widths[i]
            own_GK = found[i].float()
            wide_GT = own_GK.gather(1, slot_GT) if own_GK.shape[1] > 1 else own_GK.expand(slot_GT.shape)
            lot.advantage_GT = torch.where(lot.mask_GT, wide_GT, 0.0)
            if decided.advantage == "gae":
                rewards_G = found[i][:, 0].float()
                lot.advantage_GT, lot.targets_GT = gae(rewards_G, lot.values_GT, lot.mask_GT)
            if "gtpo" in self.arm.guard:
                keys = [rollout.keys for rollout in lot.asked.rollouts]
                protected_GT = objective.conflicts(keys, lot.advantage_GT, lot.mask_GT)
                counts_G = lot.table.free_GT.sum(1).clamp(min=1)
                lot.advantage_GT = objective.gtpo_advantages(
                    lot.advantage_GT, protected_GT, lot.entropy_GT.sum(1) / counts_G
                )
        if decided.advantage == "gae":
            whiten(lots, self.world)
        for fact in facts:
            memory.previous[fact.key] = self._observed(fact)
        if decided.advantage == "single_stream":
            self.last |= dict(self.world.gather([(lot.asked.instance.key, _kept(lot)) for lot in lots]))
        out = credit.group_metrics(facts, found, decided.unit)
        if self.arm.validity == "lagrange":
            out["group/multiplier"] = memory.multiplier.value
        out |= credit.width_metrics(wide)
        return out

    # checkpoints

    def _key(self) -> str:
        """Identifies a run: start weights, instances, settings."""
        shown = "|".join(instance.key for instance in self.instances)
        settings = json.dumps(self.arm.model_dump(), sort_keys=True)
        digest = hashlib.sha256(f"{settings}|{self.sampler.seed}|{self.world.size}|{shown}".encode())
        for name, parameter in self.learner.trained.items():
            digest.update(name.encode())
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def _save(self) -> None:
        if self.world.rank == 0:
            with publish_directory(self.folder) as partial:
                save_file(self.learner.weights(), partial / "weights.safetensors")
                save_file(self.learner.moments(), partial / "optimiser.safetensors")
                if self.best:
                    save_file(self.best, partial / "best.safetensors")
                write_json(partial / "training.json", {
                    "key": self.key, "state": asdict(self.state), "memory": self.memory.state(),
                    "watch": asdict(self.watch), "last": self.last,
                })  # fmt: skip
        self.world.wait()

    def _resume(self) -> None:
        if not self.folder.is_dir():
            return
        stored: dict[str, Any] = read_json(check_complete(self.folder) / "training.json")
        if stored["key"] != self.key:
            return
        state = stored["state"]
        self.state = State(**{**state, "best": tuple(state["best"]) if state["best"] else None})
        self.memory.restore(stored["memory"])
        self.watch.counts, self.watch.early, self.last = (
            stored["watch"]["counts"],
            stored["watch"]["early"],
            stored["last"],
        )
        self.learner.load(load_file(self.folder / "weights.safetensors"))
        self.learner.load_moments(load_file(self.folder / "optimiser.safetensors"))
        self.learner.steps = self.state.updates
        if (self.folder / "best.safetensors").is_file():
            self.best = load_file(self.folder / "best.safetensors")
        self.say(f"going on after rollout batch {self.state.step}")


def _kept(lot: Lot) -> dict[str, Any]:
    """A single stream's rollout, to be scored again at the prompt's next visit."""
    return {
        "epoch": lot.asked.epoch, "heat": lot.asked.heat, "tokens": list(lot.asked.rollouts[0].tokens),
        "log_probs": lot.old_GT[0].tolist(),
    }  # fmt: skip
