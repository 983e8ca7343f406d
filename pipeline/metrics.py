"""Metrics of certified rankings, and the paired cluster bootstrap that every figure is reported with.

Pure functions, no input or output. Sources: task definition, section 8 (docs/metrics.md says the same for readers);
NDCG after Burges et al. 2005 (gain 2^rel - 1); citation precision and recall after ALCE (Gao et al. 2023); sufficiency
and comprehensiveness after ERASER (DeYoung et al. 2020); entropy correction after Miller 1955.

Legend: K length of the list, W windows (the clusters of the bootstrap), D bootstrap draws, E pooled entries.
A quantity that is undefined is `None` (or null with its n in a file), never 0 and never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.skeletons import Slot
from pipeline.spans import Span, merge
from pipeline.windows import Step, stable_seed

Floats = NDArray[np.float64]

DIGITS = 6
"""Decimals kept in files, so that the last bits of a sum cannot change a byte."""


# ---- ranking ---------------------------------------------------------------------------------------------------------


def dcg(grades: Sequence[int], k: int, gates: Sequence[bool] | None = None) -> float:
    """Discounted cumulative gain: sum over ranks i <= k of gate_i (2^grade_i - 1) / log2(i + 1).

    Args:
        grades: relevance by rank, best rank first; may be shorter than k.
        k: cut-off, from 1.
        gates: which ranks count; ranks beyond its end do not. None lets every rank count.
    """
    total = 0.0
    for i, grade in enumerate(grades[:k]):
        if gates is None or (i < len(gates) and gates[i]):
            total += (2**grade - 1) / math.log2(i + 2)
    return total


def ideal_dcg(pool: Iterable[int], k: int) -> float:
    """DCG@k of the best possible list over the pool of *all* gold candidates, ungated."""
    return dcg(sorted(pool, reverse=True), k)


def ndcg(grades: Sequence[int], pool: Iterable[int], k: int) -> float | None:
    """NDCG@k with gain 2^rel - 1.

    Equal to pytrec_eval's `ndcg_cut_k` given 2^rel - 1 as judgement and to ranx's `ndcg_burges@k`.

    Args:
        grades: relevance by rank.
        pool: relevance of every gold candidate; those in `grades` are among them.
        k: cut-off.

    Returns:
        A number in [0, 1], None where no gold candidate is relevant.
    """
    ideal = ideal_dcg(pool, k)
    return dcg(grades, k) / ideal if ideal else None


def cert_ndcg(grades: Sequence[int], gates: Sequence[bool], pool: Iterable[int], k: int) -> float | None:
    """CertNDCG@k: only entries with a valid certificate from which the verifier recovers them gain anything.

    0 <= CertNDCG <= NDCG <= 1, because the ideal list is not gated. Arguments as in `ndcg`; `gates` by rank, the
    entries that a system did not emit counting as rejected.
    """
    ideal = ideal_dcg(pool, k)
    return dcg(grades, k, gates) / ideal if ideal else None


def evid_cons(gates: Sequence[bool], k: int) -> float:
    """EvidCons@k (also DEC-rec): certified entries per place of the list, in [0, 1]; an empty place counts 0."""
    return sum(gates[:k]) / k


def rate(flags: Collection[bool]) -> float | None:
    """Share of true flags (feasible lists, valid bundles, parsed outputs ...); None of an empty collection."""
    return sum(flags) / len(flags) if flags else None


# ---- decision-evidence coupling --------------------------------------------------------------------------------------


def kendall_tau_b(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b of two equally long sequences, in [-1, 1]; None under 2 items or when either is all tied."""
    concordant = discordant = tied_first = tied_second = 0
    n = len(first)
    for i in range(n):
        for j in range(i + 1, n):
            a, b = first[i] - first[j], second[i] - second[j]
            tied_first += a == 0
            tied_second += b == 0
            concordant += a * b > 0
            discordant += a * b < 0
    pairs = n * (n - 1) // 2
    scale = math.sqrt((pairs - tied_first) * (pairs - tied_second))
    return (concordant - discordant) / scale if scale else None


def dec_tau(sigmas: Sequence[int]) -> float | None:
    """DEC-tau of one list: tau-b between its order and the order by support sigma(c_i | E_i) (1e-6, by rank).

    Returns:
        In [-1, 1]; None (excluded, counted by the caller) under 2 entries or when all sigma are tied.
    """
    return kendall_tau_b(range(len(sigmas), 0, -1), sigmas)


def normalised_information(cells: NDArray[np.float64], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Floats:
    """I(row; column) / H(row) with Miller-Madow corrected entropies, for many contingency tables at once.

    Args:
        cells: (D, C) counts of the C cells that occur in the pooled table.
        rows, columns: (C,) row and column of each cell, as indices from 0.

    Returns:
        (D,) values; NaN where H(row) is 0. Not clipped: under independence it scatters around 0.
    """

    def entropy(counts: Floats) -> Floats:
        total = counts.sum(axis=1, keepdims=True)
        share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
        plain = -(share * np.log(share, out=np.zeros_like(share), where=share > 0)).sum(axis=1)
        occupied = (counts > 0).sum(axis=1)
        correction = np.divide(occupied - 1, 2 * total[:, 0], out=np.zeros_like(plain), where=total[:, 0] > 0)
        return np.asarray(plain + correction, dtype=np.float64)

    def marginal(index: NDArray[np.int64]) -> Floats:
        indicator = np.zeros((cells.shape[1], int(index.max()) + 1))
        indicator[np.arange(cells.shape[1]), index] = 1.0
        return np.asarray(cells @ indicator, dtype=np.float64)

    of_rows = entropy(marginal(rows))
    information = of_rows + entropy(marginal(columns)) - entropy(cells)
    return np.divide(information, of_rows, out=np.full_like(of_rows, np.nan), where=of_rows > 0)


# ---- evidence quality ------------------------------------------------------------------------------------------------


def characters(spans: Iterable[Span]) -> int:
    """Characters cited, each counted once."""
    return sum(len(span) for span in merge(spans))


def supports(spans: Collection[Span], slot: Slot, steps: Iterable[Step]) -> bool:
    """Whether cited characters hold trigger and mention of a step that fits the slot."""
    cited = merge(spans)

    def inside(span: Span) -> bool:
        return any(c.contains(span) for c in cited)

    return any(slot.fits(step.type, step.role) and inside(step.trigger) and inside(step.mention) for step in steps)


def citation_recall(bundle: Collection[Span], slots: Sequence[Slot], steps: Sequence[Step]) -> tuple[int, int]:
    """Citation recall of one bundle after ALCE, a statement being "this candidate fills this slot".

    Args:
        bundle: cited spans of all slots (a span that serves several slots is cited once, so they count together).
        slots: the slots that the certificate matches.
        steps: the candidate's extracted trajectory.

    Returns:
        (statements that the cited characters support, statements made).
    """
    return sum(supports(bundle, slot, steps) for slot in slots), len(slots)


def citation_precision(bundle: Sequence[Span], slots: Sequence[Slot], steps: Sequence[Step]) -> tuple[int, int]:
    """Citation precision of one bundle, leave-one-out: a span counts when some supported statement is lost without it.

    Repeated evidence earns nothing: of two spans that replace each other, neither is needed. Arguments as in
    `citation_recall`.

    Returns:
        (spans needed, spans cited).
    """
    supported = [slot for slot in slots if supports(bundle, slot, steps)]
    needed = 0
    for i in range(len(bundle)):
        rest = [*bundle[:i], *bundle[i + 1 :]]
        needed += any(not supports(rest, slot, steps) for slot in supported)
    return needed, len(bundle)


def matches_gold(bundle: Collection[Span], gold_sets: Iterable[Collection[Span]], iou: float) -> bool:
    """Gold gate: every span of some gold set is matched by a cited span with at least this IoU.

    An empty gold set matches nothing, and neither does a candidate without one.
    """
    return any(len(gold) > 0 and all(any(g.iou(cited) >= iou for cited in bundle) for g in gold) for gold in gold_sets)


def iou_f1(bundle: Collection[Span], gold_sets: Collection[Collection[Span]], iou: float) -> float | None:
    """IoU-F1 after ERASER with alternative gold sets: precision against all their spans, recall of the best set.

    Returns:
        In [0, 1]; 0 when nothing is cited or nothing matches; None for a candidate without gold evidence.
    """
    gold_sets = [gold for gold in gold_sets if gold]
    if not gold_sets:
        return None
    if not bundle:
        return 0.0
    union = sorted({span for gold in gold_sets for span in gold})
    precision = sum(any(cited.iou(g) >= iou for g in union) for cited in bundle) / len(bundle)
    recall = max(sum(any(g.iou(cited) >= iou for cited in bundle) for g in gold) / len(gold) for gold in gold_sets)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


# ---- bootstrap -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % percentile interval; None where undefined. `n` counts what it rests on."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def json(self) -> dict[str, float | int | None]:
        """`{value, low, high, n}`, rounded to `DIGITS` decimals."""
        return {"value": rounded(self.value), "low": rounded(self.low), "high": rounded(self.high), "n": self.n}


def rounded(value: float | None) -> float | None:
    """To `DIGITS` decimals, minus zero made zero; NaN and None become None."""
    if value is None or math.isnan(value):
        return None
    return round(float(value), DIGITS) + 0.0


@dataclass(frozen=True, slots=True)
class Ratio:
    """A statistic sum(num) / sum(den) as (W,) sums per window; a mean over instances has their counts as `den`.

    `n` is the number of instances (or entries) behind it.
    """

    num: Floats
    den: Floats
    n: int


def window_weights(windows: int, draws: int, seed: int) -> Floats:
    """(D, W) how often each window occurs in each resample of all windows with replacement.

    One matrix serves every system and setting, which is what makes the comparison paired.
    """
    if windows == 0:
        return np.zeros((draws, 0))
    generator = np.random.default_rng(stable_seed(seed, "bootstrap", windows, draws))
    return generator.multinomial(windows, np.full(windows, 1 / windows), size=draws).astype(np.float64)


def _draws(ratio: Ratio, weights: Floats) -> Floats:
    """(D,) the statistic in every draw; NaN where the denominator is 0."""
    num, den = weights @ ratio.num, weights @ ratio.den
    return np.divide(num, den, out=np.full_like(num, np.nan), where=np.abs(den) > 1e-12)


def _point(ratio: Ratio) -> float | None:
    den = math.fsum(ratio.den)
    return math.fsum(ratio.num) / den if abs(den) > 1e-12 else None


def interval(draws: Floats) -> tuple[float, float] | None:
    """The 2.5 and 97.5 percentiles of the draws in which the statistic is defined; None when there are none."""
    defined = draws[~np.isnan(draws)]
    if not defined.size:
        return None
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


def _estimate(value: float | None, draws: Floats, n: int) -> Estimate:
    bounds = interval(draws) if value is not None else None
    low, high = bounds if bounds is not None else (None, None)
    return Estimate(value, low, high, n)


def estimate(ratio: Ratio, weights: Floats) -> Estimate:
    """The statistic with its cluster-bootstrap interval; the ratio is taken anew inside each draw.

    Args:
        ratio: sums per window.
        weights: (D, W) of `window_weights`.

    Returns:
        Value None, with its n, when the denominator is 0.
    """
    return _estimate(_point(ratio), _draws(ratio, weights), ratio.n)


def share(ratio: Ratio, weights: Floats) -> Estimate:
    """A share of trials, each of which succeeded or not: `num` counts successes, `den` trials.

    Its interval is the hull of the bootstrap's and Wilson's score interval: the bootstrap of trials of which none (or
    all) succeeded has no width, and Wilson's takes trials of one window for independent.
    """
    found = estimate(ratio, weights)
    if found.value is None or found.low is None or found.high is None:
        return found
    low, high = wilson(round(math.fsum(ratio.num)), round(math.fsum(ratio.den)))
    return Estimate(found.value, min(found.low, low), max(found.high, high), found.n)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a binomial share (Wilson 1927); at least one trial."""
    rate, z2 = successes / trials, 1.959964**2
    middle = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (rate * (1 - rate) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    return max(0.0, middle - half), min(1.0, middle + half)


def difference(first: Ratio, second: Ratio, weights: Floats) -> Estimate:
    """first - second with a paired interval: both are computed on the same windows of each draw."""
    a, b = _point(first), _point(second)
    value = None if a is None or b is None else a - b
    return _estimate(value, _draws(first, weights) - _draws(second, weights), min(first.n, second.n))


def dec_delta(certified: Floats, shifted: Floats, n: int, weights: Floats) -> Estimate:
    """DEC-delta = 1 - sum CertNDCG(shifted) / sum CertNDCG(E) over lists with at least 2 entries.

    Args:
        certified: (W,) sums per window of CertNDCG under the list's own certificates.
        shifted: (W,) the same under the certificates moved cyclically by one.
        n: number of such lists.
        weights: (D, W) of `window_weights`.

    Returns:
        At most 1; None with n when nothing is certified.
    """
    return estimate(Ratio(certified - shifted, certified, n), weights)


def dec_mi(
    window: NDArray[np.int64],
    claimed: NDArray[np.int64],
    recovered: NDArray[np.int64],
    weights: Floats,
    permutations: int,
    seed: int,
) -> tuple[Estimate, Estimate]:
    """DEC-MI = I(c; c^) / H(c) over local ids pooled over the split, and its permutation null.

    Args:
        window: (E,) index of the entry's window.
        claimed: (E,) code of the local id that the entry names.
        recovered: (E,) code of the local id that the verifier recovers, "none" being a code of its own.
        weights: (D, W) of `window_weights`.
        permutations: shuffles of `recovered` against `claimed` for the null.
        seed: of the shuffles.

    Returns:
        (the estimate; the null's mean with its 2.5 and 97.5 percentiles). None where H(c) is 0.
    """
    n = len(claimed)
    if n == 0:
        return Estimate(None, None, None, 0), Estimate(None, None, None, 0)
    width = int(recovered.max()) + 1
    codes, inverse = np.unique(claimed * width + recovered, return_inverse=True)
    rows, columns = codes // width, codes % width
    per_window = np.zeros((weights.shape[1], len(codes)))
    np.add.at(per_window, (window, inverse), 1.0)
    value = float(normalised_information(per_window.sum(axis=0, keepdims=True), rows, columns)[0])
    if math.isnan(value):
        return Estimate(None, None, None, n), Estimate(None, None, None, n)
    draws = normalised_information(weights @ per_window, rows, columns)

    generator = np.random.default_rng(stable_seed(seed, "permutation", n))
    height = int(claimed.max()) + 1
    full_rows, full_columns = np.divmod(np.arange(height * width), width)
    shuffled = [claimed * width + generator.permutation(recovered) for _ in range(permutations)]
    tables = np.array([np.bincount(codes, minlength=height * width) for codes in shuffled], dtype=np.float64)
    null = normalised_information(tables, full_rows, full_columns)
    return _estimate(value, draws, n), _estimate(float(null.mean()), null, n)
