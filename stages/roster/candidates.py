"""Who is ranked: the mention clusters of a window in the closed, the predicted and the hybrid setting.

A roster is a list of clusters, each a list of mention spans. Closed: the given ones. Predicted: what the extractor
found, roles or not. Hybrid: both, one cluster where they speak of the same mentions; nothing tells the source
afterwards (task definition, section 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.spans import Span
from stages.roster.overlap import Overlaps

Cluster = tuple[Span, ...]
"""Mention spans of one candidate; in window order once it stands in a roster."""


@dataclass(frozen=True, slots=True)
class Roster:
    """The candidates of one window in one setting, in canonical order (by candidate id).

    Args:
        window_id: the window.
        clusters: candidate id -> its mentions in window order. The id is the first mention's citation string.
    """

    window_id: str
    clusters: Mapping[str, Cluster]


def build(window_id: str, clusters: Sequence[Sequence[Span]], position: Mapping[str, int]) -> Roster:
    """A roster of disjoint clusters.

    Args:
        window_id: the window.
        clusters: mention spans; a span that stands in two clusters stays in the first.
        position: order of each document in the window.
    """
    taken: set[Span] = set()
    named: dict[str, Cluster] = {}
    for cluster in clusters:
        own = sorted(set(cluster) - taken, key=lambda s: (position[s.doc_id], s.start, s.end))
        if own:
            taken.update(own)
            named[str(own[0])] = tuple(own)
    return Roster(window_id, {key: named[key] for key in sorted(named)})


def merge(closed: Sequence[Cluster], predicted: Sequence[Cluster], iou: float) -> list[list[Span]]:
    """The hybrid clusters: every closed one, with what the extractor found added.

    Two mentions are one when their IoU reaches `iou`; the given span stands for both. A predicted cluster joins the
    closed cluster that it shares most with (total IoU, then the earlier one) and brings its other mentions along; it
    never joins two closed clusters to one, because these are known to be different. Without a shared mention it is
    a candidate of its own.
    """
    given = Overlaps((span, i) for i, cluster in enumerate(closed) for span in cluster)
    joined = [list(cluster) for cluster in closed]
    alone: list[list[Span]] = []
    for cluster in predicted:
        shared: dict[int, float] = {}
        rest: list[Span] = []
        for span in cluster:
            matches = [(span.iou(other), i) for other, i in given.of(span)]
            matches = [(value, i) for value, i in matches if value >= iou]
            for value, i in matches:
                shared[i] = shared.get(i, 0.0) + value
            if not matches:
                rest.append(span)
        if shared:
            joined[max(shared, key=lambda i: (shared[i], -i))].extend(rest)
        else:
            alone.append(rest)
    return joined + alone
