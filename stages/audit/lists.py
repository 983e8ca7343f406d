"""The metrics of one list: one system, one roster setting, one instance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import certificates, metrics
from pipeline.skeletons import MICRO
from pipeline.verifier import Verdict
from stages.audit.cases import Case, EntryFacts
from stages.audit.inputs import Listed

NO_CANDIDATE = "none"

MEANS = (
    "ndcg", "cert_ndcg", "cert_ndcg_gold", "cert_ndcg_l0", "cert_ndcg_l1", "cert_ndcg_l3", "evid_cons", "evid_cons_l3",
    "feasible", "dec_rec", "dec_difference", "dec_tau", "parse_ok", "emitted", "valid", "sufficient", "minimal",
    "precision", "recall", "iou_f1", "characters", "sufficiency", "comprehensiveness",
)  # fmt: skip
"""Metrics that are means over the instances in which they are defined, as named in metrics.json."""

RATIOS = {
    "dec_delta": ("dec_difference", "cert_ndcg"),
    "dec_delta_evidence": ("evid_cons_lost", "evid_cons"),
    "l3_agrees": ("certified_by_both", "certified"),
}
"""Metrics that are ratios of sums: numerator and denominator per instance. An instance whose numerator is None is left
out; those of DEC-delta are None for lists under two entries."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What the audit says of one list.

    Args:
        values: metric -> value, None where undefined; names of `MEANS` and a few parts of `RATIOS`.
        gates: per emitted entry, whether it counts in CertNDCG.
        facts: per emitted entry.
        verdicts: per emitted entry.
        verdicts_l3: the same at level L3, None without a held-out extractor.
        coupled: whether the list has the two entries that DEC-delta needs.
        claims: per emitted entry: local id that it names, and local id that the verifier recovers or "none".
        disagreements: entries that the system's stage called certified and the audit does not, or the reverse.
    """

    values: dict[str, float | None]
    gates: list[bool]
    facts: list[EntryFacts]
    verdicts: list[Verdict]
    verdicts_l3: list[Verdict] | None
    coupled: bool
    claims: list[tuple[str, str]]
    disagreements: int


def judge(case: Case, listed: Listed) -> Judged:
    """Compute every metric of one list (task definition, section 8)."""
    window, entries, k = case.window, listed.entries, case.window.k
    gates = case.gates(entries)
    verdicts = case.verdicts(tuple(entry.spans for entry in entries))
    verdicts_l3 = case.verdicts_l3(entries)
    facts = [case.facts(entry) for entry in entries]
    local = case.view.local
    certified, consistent = case.certified(listed.ranking, gates), metrics.evid_cons(gates, k)
    gold = [bool(f.gold_gate) for f in facts]
    values: dict[str, float | None] = {
        "ndcg": case.certified(listed.ranking, None),
        "cert_ndcg": certified,
        "cert_ndcg_gold": case.certified(listed.ranking, gold),
        "evid_cons": consistent,
        "dec_rec": consistent,
        "feasible": float(
            certificates.feasible(entries, window, case.intent.skeleton, case.limits, k, case.certifiable)
        ),
        "dec_tau": metrics.dec_tau([f.sigma for f in facts]),
        "parse_ok": metrics.rate([status != "rejected" for status in listed.outputs]),
        "emitted": len(entries) / k,
        "valid": metrics.rate([f.code is None for f in facts]),
        "sufficient": metrics.rate([f.sufficient for f in facts]),
        "minimal": metrics.rate([f.minimal for f in facts]),
        "precision": _pooled([f.precision for f in facts]),
        "recall": _pooled([f.recall for f in facts]),
        "iou_f1": _mean([f.iou_f1 for f in facts if f.iou_f1 is not None]),
        "characters": _mean([f.characters for f in facts]),
        "sufficiency": _mean([f.sufficiency / MICRO for f in facts]),
        "comprehensiveness": _mean([f.comprehensiveness / MICRO for f in facts]),
        "cert_ndcg_l0": case.certified(listed.ranking, [f.l0 for f in facts]),
        "cert_ndcg_l1": case.certified(listed.ranking, [f.l1 for f in facts]),
        **_coupling(case, listed, certified, consistent),
        **_heldout(case, listed, gates, None if verdicts_l3 is None else case.accepted(entries, verdicts_l3)),
    }
    return Judged(
        values,
        gates,
        facts,
        verdicts,
        verdicts_l3,
        len(entries) >= 2,
        [
            (local[e.candidate_id], NO_CANDIDATE if v.candidate_id is None else local[v.candidate_id])
            for e, v in zip(entries, verdicts, strict=True)
        ],
        sum(mine != theirs for mine, theirs in zip(gates, listed.claimed, strict=True)),
    )


def scores(case: Case, listed: Listed, gates: Sequence[bool]) -> dict[str, float | None]:
    """CertNDCG and EvidCons of a list under given gates."""
    return {
        "cert_ndcg": case.certified(listed.ranking, gates),
        "evid_cons": metrics.evid_cons(gates, case.window.k),
    }


def lax_verdicts(case: Case, listed: Listed) -> list[tuple[int, int] | None]:
    """Per entry (support, margin) in 1e-6 where the verifier without thresholds recovers it and it is valid."""
    verdicts = case.lax.verify([entry.spans for entry in listed.entries])
    return [
        (v.sigma, v.margin) if case.code(e) is None and v.candidate_id == e.candidate_id else None
        for e, v in zip(listed.entries, verdicts, strict=True)
    ]


def _coupling(case: Case, listed: Listed, certified: float | None, consistent: float) -> dict[str, float | None]:
    """CertNDCG and EvidCons that are lost when certificates move cyclically by one; None under two entries."""
    entries = listed.entries
    if len(entries) < 2:
        return {"dec_difference": None, "evid_cons_lost": None}
    shifted = [
        certificates.Entry(entry.candidate_id, entries[(i + 1) % len(entries)].slots) for i, entry in enumerate(entries)
    ]
    gates = case.gates(shifted)
    after = case.certified(listed.ranking, gates)
    return {
        "dec_difference": None if certified is None or after is None else certified - after,
        "evid_cons_lost": consistent - metrics.evid_cons(gates, case.window.k),
    }


def _heldout(
    case: Case, listed: Listed, gates: Sequence[bool], gates_l3: Sequence[bool] | None
) -> dict[str, float | None]:
    """CertNDCG and EvidCons under the gates of L3, and how many certified entries those confirm; None without any."""
    if gates_l3 is None:
        return dict.fromkeys(("cert_ndcg_l3", "evid_cons_l3", "certified", "certified_by_both"))
    certified = sum(gates)
    both = sum(a and b for a, b in zip(gates, gates_l3, strict=True))
    return {
        "cert_ndcg_l3": case.certified(listed.ranking, gates_l3),
        "evid_cons_l3": metrics.evid_cons(gates_l3, case.window.k),
        "certified": certified,
        "certified_by_both": both if certified else None,
    }


def _pooled(parts: Sequence[tuple[int, int]]) -> float | None:
    total = sum(whole for _, whole in parts)
    return sum(part for part, _ in parts) / total if total else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
