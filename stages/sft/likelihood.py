"""Log-probabilities of labelled tokens in packed rows, for tiny-mla and for transformers' models alike.

Axes: B rows, T tokens, M labelled tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.mla import MLAForCausalLM, labelled, segment_positions


def log_probs(model: nn.Module, ids_BT: Tensor, labels_BT: Tensor, segments_BT: Tensor) -> Tensor:
    """Log-probability [B, T] of every labelled token given what stands before it in its segment; 0 elsewhere.

    The vocabulary is computed at labelled places only. A model of transformers must take a four-dimensional mask (all
    with attention by `sdpa` do).

    Args:
        model: `MLAForCausalLM` or a causal language model of transformers.
        ids_BT: token ids.
        labels_BT: the ids themselves or `pipeline.mla.IGNORED`; the first of a segment is never predicted.
        segments_BT: number of the example in its row, 0 where padded.
    """
    if isinstance(model, MLAForCausalLM):
        return model.log_probs(ids_BT, labels_BT, segments_BT=segments_BT)
    own: Any = model
    labelled_BT = labelled(labels_BT, segments_BT)
    hidden_BTD = own.get_decoder()(
        input_ids=ids_BT,
        attention_mask=_mask(segments_BT),
        position_ids=segment_positions(segments_BT),
        use_cache=False,
    ).last_hidden_state
    logits_MW = own.get_output_embeddings()(hidden_BTD[:, :-1][labelled_BT[:, 1:]])
    found_M = logits_MW.float().log_softmax(-1).gather(1, ids_BT[labelled_BT][:, None])[:, 0]
    return torch.zeros(ids_BT.shape, device=ids_BT.device).masked_scatter(labelled_BT, found_M)


def _mask(segments_BT: Tensor) -> Tensor:
    """[B, 1, T, T]: which token sees which. Padding sees padding, because a query that sees nothing is no number."""
    index_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    return (same_BTT & (index_T[:, None] >= index_T))[:, None]
