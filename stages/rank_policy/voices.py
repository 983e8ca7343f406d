"""A policy's folder made ready to be asked, in process or by a vLLM server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

from pipeline.engines import Engine, TransformersEngine
from pipeline.files import COMPLETE, check_complete, sha256_file
from pipeline.params import RankPolicy
from pipeline.policies import Policy, load_policy
from stages.rank_policy.questions import Voice

KEY = "VLLM_API_KEY"
"""Environment variable: the key of a server that runs already."""

LIBRARIES = ("torch", "transformers", "tokenizers", "llguidance")
"""What may change an answer's last bits."""


@contextmanager
def open_voice(folder: Path, params: RankPolicy) -> Iterator[Voice]:
    """The policy in a published folder.

    The tokenizer is read here in either case. A server that runs already must serve this folder under the name
    `policy`; its length limit and its tokens are checked, its weights cannot be.

    Args:
        folder: models/pretrain or models/sft.
        params: engine and url are used.

    Raises:
        DataError: the folder is incomplete or was changed.
        SetupError: the policy cannot be loaded or served.
        TransientError: the server is gone.
    """
    policy = load_policy(check_complete(folder))
    with ExitStack() as stack:
        engine, positions = _engine(folder, policy, params, stack)
        libraries = [f"{name} {version(name)}" for name in LIBRARIES]
        identity = " ".join([sha256_file(folder / COMPLETE), params.engine, params.url, *libraries])
        yield Voice(engine, policy.decode, policy.specials, positions, identity)


def _engine(folder: Path, policy: Policy, params: RankPolicy, stack: ExitStack) -> tuple[Engine, int]:
    """The engine and the most tokens of prompt and answer."""
    if params.engine == "transformers":
        return TransformersEngine(policy), policy.positions
    from pipeline.vllm_engine import VllmEngine
    from pipeline.vllm_server import RemoteServer, VllmServer

    if params.url:
        engine = VllmEngine(policy, RemoteServer(url=params.url, model="policy", key=os.environ.get(KEY)))
    else:
        engine = VllmEngine(policy, stack.enter_context(VllmServer(folder)))
    return engine, min(policy.positions, engine.limit or policy.positions)
