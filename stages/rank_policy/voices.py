"""A policy made ready to be asked, in process or by a vLLM server."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch

from pipeline.engines import Engine, TransformersEngine
from pipeline.files import WORK
from pipeline.policies import Policy, save_policy
from stages.rank_policy.questions import Voice

EngineKind = Literal["transformers", "vllm"]

KEY = "VLLM_API_KEY"
"""Environment variable: the key of a server that runs already."""

LIBRARIES = ("torch", "transformers", "tokenizers", "llguidance")
"""What may change an answer's last bits."""


@contextmanager
def open_voice(policy: Policy, kind: EngineKind, url: str) -> Iterator[Voice]:
    """A policy that can be asked until the block ends.

    A server that runs already must serve this policy under the name `policy`; its length limit and its tokens are
    checked, its weights cannot be.

    Args:
        policy: its tokenizer is used with either engine.
        kind: what generates.
        url: of a vLLM server that runs already; "" starts one.

    Raises:
        SetupError: the policy cannot be served.
        TransientError: the server is gone.
    """
    with ExitStack() as stack:
        engine, positions = _engine(policy, kind, url, stack)
        libraries = [f"{name} {version(name)}" for name in LIBRARIES]
        identity = " ".join([digest(policy), kind, url, *libraries])
        yield Voice(engine, policy.decode, policy.specials, positions, identity)


def digest(policy: Policy) -> str:
    """sha256 of weights and tokenizer."""
    found = hashlib.sha256(policy.backend.to_str().encode())
    for name, tensor in sorted(policy.model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _engine(policy: Policy, kind: EngineKind, url: str, stack: ExitStack) -> tuple[Engine, int]:
    """The engine and the most tokens of prompt and answer."""
    if kind == "transformers":
        return TransformersEngine(policy), policy.positions
    from pipeline.vllm_engine import VllmEngine
    from pipeline.vllm_server import RemoteServer, VllmServer

    if url:
        engine = VllmEngine(policy, RemoteServer(url=url, model="policy", key=os.environ.get(KEY)))
    else:
        WORK.mkdir(parents=True, exist_ok=True)
        folder = Path(stack.enter_context(TemporaryDirectory(dir=WORK, prefix="serve-")))
        save_policy(policy, folder)
        engine = VllmEngine(policy, stack.enter_context(VllmServer(folder)))
    return engine, min(policy.positions, engine.limit or policy.positions)
