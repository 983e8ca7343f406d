"""The vLLM engine and its server: against a small fake, always; against vLLM itself where `make serve-env` was run."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline import vllm_engine, vllm_server
from pipeline.engines import Answer, Request, Sampling
from pipeline.errors import DataError, SetupError, TransientError
from pipeline.mla import MLAConfig, MLAForCausalLM
from pipeline.mla_storage import save_mla
from pipeline.vllm_engine import CANARY, FolderTokens, VllmEngine, seed_of
from pipeline.vllm_server import RemoteServer, ServerSettings, VllmServer, last_words
from pipeline.vllm_wire import Shares

END = 0
GRAMMAR = (
    'root ::= "." | entry (" | " entry)? " ."\nentry ::= candidate slots\nslots ::= s1 s2? | s2\n'
    's1 ::= " s1=" handles\ns2 ::= " s2=" handles\nhandles ::= handle ("," handle)?\n'
    'candidate ::= "C01" | "C02"\nhandle ::= "E01" | "E02"\n'
)
"""Of the form that `certificates.grammar` writes."""
LINE = r"\.|(C0[12]( s1=E0[12](,E0[12])?( s2=E0[12](,E0[12])?)?| s2=E0[12](,E0[12])?)( \| (?=C))?){1,2} \."
GREEDY = Sampling(temperature=0.0)


class Bytes:
    """Tokenizer of a fake model: 0 ends, else a byte and one."""

    eos = END

    def encode(self, text: str) -> list[int]:
        return [byte + 1 for byte in text.encode()]

    def decode(self, ids: list[int]) -> str:
        return bytes(i - 1 for i in ids).decode("utf-8", "replace")


class Fake:
    """A server that obeys grammars of one sentence, unless told otherwise, and else echoes what it was asked.

    Attributes:
        obeys: whether it heeds `structured_outputs`.
        received: the bodies of all completions, in order of arrival.
        limit: the most tokens of prompt and answer, as it tells.
        fail: called with each body; returns a status to answer with, or 0 to hang up, or None to answer properly.
        change: called on every answer before it is sent.
    """

    def __init__(self) -> None:
        self.obeys, self.received, self.limit = True, list[dict[str, Any]](), 400
        self.fail: Callable[[dict[str, Any]], int | None] = lambda sent: None
        self.change: Callable[[dict[str, Any]], None] = lambda answer: None
        self.lock, self.under_way, self.most = threading.Lock(), 0, 0
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

            def do_GET(self) -> None:
                self.reply(200, {"data": [{"id": "policy", "max_model_len": fake.limit}]})

            def do_POST(self) -> None:
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake.lock:
                    fake.received.append(sent)
                    fake.under_way += 1
                    fake.most = max(fake.most, fake.under_way)
                try:
                    status = fake.fail(sent)
                finally:
                    with fake.lock:
                        fake.under_way -= 1
                if status == 0:
                    self.close_connection = True
                elif status is not None:
                    self.reply(status, {"error": {"message": f"told to answer {status}"}})
                else:
                    answer = fake.answer(sent)
                    fake.change(answer)
                    self.reply(200, answer)

            def reply(self, status: int, value: Any) -> None:
                payload = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def server(self) -> RemoteServer:
        return RemoteServer(url=f"http://127.0.0.1:{self.http.server_port}", model="policy", key="abc")

    def answer(self, sent: dict[str, Any]) -> dict[str, Any]:
        text = f"{Bytes().decode(sent['prompt'])}/{sent['seed']}"
        if self.obeys and (held := sent.get("structured_outputs")):
            text = held["grammar"].split('"')[1] if "grammar" in held else json.dumps(held["json"]["const"])
        ids = [*Bytes().encode(text), END][: sent["max_tokens"]]
        finish = "stop" if ids[-1] == END else "length"
        return {"choices": [
            {"index": i, "token_ids": ids, "prompt_token_ids": sent["prompt"], "finish_reason": finish,
             "logprobs": {"token_logprobs": [-0.5] * len(ids)}}
            for i in reversed(range(sent["n"]))
        ]}  # fmt: skip

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setattr(vllm_engine, "WAIT", 0.01)
    found = Fake()
    yield found
    found.stop()


def ask(*keys: str, **more: Any) -> list[Request]:
    return [Request(key=key, prompt=f"prompt {key}", **more) for key in keys]


def run(engine: VllmEngine, requests: list[Request], sampling: Sampling | None = None) -> list[list[Answer]]:
    return list(engine.generate(requests, sampling or Sampling()))


# ---- the engine, against the fake -----------------------------------------------------------------------------------


def test_answers_come_in_order_though_requests_end_in_another(fake: Fake) -> None:
    keys = [f"k{i:02}" for i in range(30)]
    fake.fail = lambda sent: time.sleep(0.05 if sent["prompt"][-1] % 2 else 0.0)
    engine = VllmEngine(Bytes(), fake.server, in_flight=4)
    answers = run(engine, ask(*keys, samples=2), Sampling(seed=5))
    assert [a[1].text for a in answers] == [f"prompt {key}/{seed_of(5, key)}" for key in keys]
    assert fake.most == 4
    first = answers[0][0]
    assert first.tokens[-1] == END and first.finish == "stop" and first.prompt_tokens == len("prompt k00")
    assert first.log_probs == (-0.5,) * len(first.tokens) and first.model_log_probs is None
    assert engine.count("añ") == 3


def test_a_cut_off_answer_says_so_and_greedy_log_probabilities_are_those_of_certainty(fake: Fake) -> None:
    [[answer]] = run(VllmEngine(Bytes(), fake.server), ask("a", max_new_tokens=5), GREEDY)
    assert (answer.text, answer.finish, answer.log_probs) == ("promp", "length", (0.0,) * 5)


def test_what_is_sent_settles_the_distribution_and_the_seed(fake: Fake) -> None:
    engine = VllmEngine(Bytes(), fake.server)
    run(engine, ask("a", samples=3), Sampling(temperature=0.7, top_p=0.9, seed=1))
    [sent] = fake.received
    assert sent["prompt"] == Bytes().encode("prompt a") and sent["n"] == 3 and sent["stop_token_ids"] == [END]
    assert (sent["temperature"], sent["top_p"], sent["top_k"], sent["repetition_penalty"]) == (0.7, 0.9, 0, 1.0)
    assert sent["seed"] == seed_of(1, "a") != seed_of(2, "a") != seed_of(2, "b")
    assert 0 <= seed_of(1, "a") < 2**48 and "structured_outputs" not in sent


def test_the_canary_goes_first_and_once(fake: Fake) -> None:
    engine = VllmEngine(Bytes(), fake.server)
    grammar = 'root ::= "C01 s1=E01 ."\n'
    for _ in range(2):
        assert [a[0].text for a in run(engine, ask("a", "b", grammar=grammar))] == ["C01 s1=E01 ."] * 2
    held = [sent["structured_outputs"]["grammar"] for sent in fake.received]
    assert [CANARY in h for h in held] == [True, False, False, False, False]
    assert run(engine, ask("c", schema={"const": "x"}))[0][0].text == '"x"'
    assert fake.received[5]["structured_outputs"] == {"json": {"type": "string", "const": CANARY}}


@pytest.mark.parametrize("more", [{"grammar": GRAMMAR}, {"schema": {"const": 1}}])
def test_a_server_that_ignores_grammars_is_found_out_before_the_first_request(fake: Fake, more: Any) -> None:
    fake.obeys = False
    engine = VllmEngine(Bytes(), fake.server)
    with pytest.raises(SetupError, match=r"the server ignores (grammars|JSON schemas)"):
        engine.generate(ask("a", **more), Sampling())
    assert len(fake.received) == 1  # the canary alone
    assert len(run(engine, ask("a"))) == 1  # free generation is not concerned


def test_a_server_that_dies_loses_nothing_that_was_yielded(fake: Fake) -> None:
    fake.fail = lambda sent: 0 if len(fake.received) > 5 else None
    answers = VllmEngine(Bytes(), fake.server, in_flight=1).generate(ask(*"abcdefgh"), Sampling())
    got = []
    with pytest.raises(TransientError, match=r"request f: the server at .* is gone"):
        for answer in answers:
            got.append(answer)
    assert [a[0].text[:8] for a in got] == [f"prompt {key}" for key in "abcde"]


def test_a_lost_connection_is_repeated_and_a_refusal_is_not(fake: Fake) -> None:
    fake.fail = lambda sent: [0, 503, None][min(len(fake.received) - 1, 2)]
    engine = VllmEngine(Bytes(), fake.server)
    assert len(run(engine, ask("a"))) == 1
    assert len(fake.received) == 3 and fake.received[0] == fake.received[2]  # the same seed: the same answer
    fake.fail = lambda sent: 400
    with pytest.raises(SetupError, match=r"request b: .*refuses it: status 400: told to answer 400"):
        run(engine, ask("b"))
    assert len(fake.received) == 4


def test_repetitions_are_bounded(fake: Fake) -> None:
    fake.fail = lambda sent: 500
    with pytest.raises(TransientError, match="status 500"):
        run(VllmEngine(Bytes(), fake.server), ask("a"))
    assert len(fake.received) == vllm_engine.TRIES


def test_a_server_that_keeps_silent_is_given_up(fake: Fake) -> None:
    silent = threading.Event()
    fake.fail = lambda sent: silent.wait(20) and None
    start = time.monotonic()
    with pytest.raises(TransientError, match="no answer within"):
        run(VllmEngine(Bytes(), fake.server, seconds=0.3), ask("a"))
    silent.set()
    assert time.monotonic() - start < 5


def test_who_stops_listening_does_not_wait_for_the_rest(fake: Fake) -> None:
    slow = threading.Event()
    fake.fail = lambda sent: slow.wait(20) and None if len(fake.received) > 1 else None
    answers = VllmEngine(Bytes(), fake.server, in_flight=1).generate(ask(*"abcd"), Sampling())
    assert next(answers)[0].text.startswith("prompt a")
    start = time.monotonic()
    answers.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 5
    slow.set()


def nothing(answer: dict[str, Any]) -> None:
    answer["choices"] = []


def no_ids(answer: dict[str, Any]) -> None:
    del answer["choices"][0]["token_ids"]


def other_prompt(answer: dict[str, Any]) -> None:
    answer["choices"][0]["prompt_token_ids"] = [1]


def short_log_probs(answer: dict[str, Any]) -> None:
    answer["choices"][0]["logprobs"]["token_logprobs"].pop()


def aborted(answer: dict[str, Any]) -> None:
    answer["choices"][0]["finish_reason"] = "abort"


@pytest.mark.parametrize("change", [nothing, no_ids, other_prompt, short_log_probs, aborted])
def test_an_answer_of_another_form_is_no_answer(fake: Fake, change: Callable[[dict[str, Any]], None]) -> None:
    fake.change = change
    with pytest.raises(SetupError, match="request a: "):
        run(VllmEngine(Bytes(), fake.server), ask("a"))


def test_what_does_not_fit_is_refused_before_anything_is_sent(fake: Fake) -> None:
    engine = VllmEngine(Bytes(), fake.server)
    for requests in (
        [*ask("a"), Request(key="b", prompt="x" * 200, max_new_tokens=201)], [Request(key="a", prompt="")],
        ask("a", "a"), ask("a", grammar=GRAMMAR, schema={}),
    ):  # fmt: skip
        with pytest.raises(DataError):
            engine.generate(requests, Sampling())
    assert not fake.received


def test_another_model_or_no_server_is_told(fake: Fake) -> None:
    with pytest.raises(SetupError, match=r"does not serve 'other' but \['policy'\]"):
        VllmEngine(Bytes(), RemoteServer(url=fake.server.url, model="other"))
    with pytest.raises(SetupError, match="not the address of a server"):
        VllmEngine(Bytes(), RemoteServer(url="localhost:80", model="policy"))
    fake.http.server_close()
    with pytest.raises(TransientError, match="is gone"):
        VllmEngine(Bytes(), fake.server)


def test_seconds_sum_to_the_wall_time() -> None:
    shares, parts = Shares(), list[float]()

    def work() -> None:
        with shares.share() as share:
            time.sleep(0.2)
        parts.append(share.seconds)

    start = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.2 <= sum(parts) <= time.perf_counter() - start


# ---- the server process, with a stand-in for vLLM -------------------------------------------------------------------

STAND_IN = """
import json, os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
# takes the place of the interpreter that has vLLM: called as `PYTHON -m vllm... --port N ...`
mode = os.environ["STAND_IN"]
if mode == "fails":
    print("Traceback ...\\nRuntimeError: no such layer: 7\\nbye", flush=True)
    sys.exit(3)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
helper = subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"])
class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        right = self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
        body = json.dumps({"data": [{"id": "policy", "max_model_len": 9}]}).encode()
        self.send_response(200 if right else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
if mode == "hangs":
    print("still loading", flush=True)
    time.sleep(600)
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder; the server started for it ignores SIGTERM and has a helper process that does, too."""
    (tmp_path / "stand_in.py").write_text(STAND_IN, encoding="utf-8")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/stand_in.py" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setenv(vllm_server.PYTHON, str(python))
    monkeypatch.setenv("STAND_IN", "serves")
    monkeypatch.setattr(vllm_server, "WORK", tmp_path / "work")
    monkeypatch.setattr(vllm_server, "PATIENCE", 0.3)
    return tmp_path


def members(group: int) -> list[int]:
    """Processes of a group that are not zombies."""
    listed = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(pid) for pid, pgid, state in rows if int(pgid) == group and not state.startswith("Z")]


def gone(group: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while members(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not members(group)


def test_the_whole_group_ends_with_the_block(stand_in: Path) -> None:
    group = 0
    with pytest.raises(KeyboardInterrupt), VllmServer(stand_in) as server:
        group = server.group or 0
        assert len(members(group)) == 3 and group != os.getpgrp()  # guard, server, helper
        server.check()
        raise KeyboardInterrupt
    assert group and gone(group, 0)


def test_the_whole_group_ends_when_the_guard_itself_is_killed(stand_in: Path) -> None:
    with VllmServer(stand_in) as server:
        group = server.group
        assert group is not None
        os.kill(group, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while server.group is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(TransientError, match="the vLLM server has ended"):
            server.check()
    assert gone(group)


def test_no_orphan_is_left_when_the_owner_is_killed(stand_in: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom pipeline import vllm_server\n"
        f"vllm_server.WORK = Path({str(stand_in / 'work')!r})\nvllm_server.PATIENCE = 0.3\n"
        f"with vllm_server.VllmServer({str(stand_in)!r}) as server:\n    print(server.group, flush=True)\n"
        "    time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    group = int(owner.stdout.readline())
    assert len(members(group)) == 3
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert gone(group)


@pytest.mark.parametrize(("mode", "message"), [
    ("fails", r"did not start \(exit code 3\): RuntimeError: no such layer: 7"),
    ("hangs", "was not ready after 1 s: still loading"),
])  # fmt: skip
def test_a_server_that_does_not_start_says_why(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch, mode: str, message: str
) -> None:
    monkeypatch.setenv("STAND_IN", mode)
    server = VllmServer(stand_in, ServerSettings(seconds=1.0 if mode == "hangs" else 30.0))
    with pytest.raises(SetupError, match=message), server:
        pass
    assert server.group is None


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SetupError, match="no model here"), VllmServer(empty):
        pass
    (empty / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SetupError, match="an adapter, no whole model"), VllmServer(empty):
        pass
    monkeypatch.setenv(vllm_server.PYTHON, str(tmp_path / "nowhere"))
    with pytest.raises(SetupError, match="make serve-env"), VllmServer(stand_in):
        pass


def test_last_words_are_those_that_name_an_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "(APIServer pid=6) WARNING 11-21 18:00:00 [a.py:2] this can cause errors like `OSError: too many open files`\n"
        "(EngineCore pid=7) ERROR 11-21 18:00:00 [core.py:9] ValueError: too long\nfine\n"
        "(APIServer pid=6) RuntimeError: Engine core failed. See above.\n\nbye\n", encoding="utf-8",
    )  # fmt: skip
    assert last_words(log) == "ValueError: too long | RuntimeError: Engine core failed. See above."
    assert last_words(tmp_path / "none") == "it has no log"


# ---- vLLM itself ----------------------------------------------------------------------------------------------------


def has_vllm() -> bool:
    try:
        return bool(vllm_server.serve_python())
    except SetupError:
        return False


needs_vllm = pytest.mark.skipif(not has_vllm(), reason="no environment with vLLM: make serve-env")
VLLM = ServerSettings(max_model_len=256, threads=1, sequences=8, seconds=600.0)


def save_tokenizer(folder: Path) -> int:
    """Bytes and four merges, so that a mask must cut a token; returns the size of the vocabulary."""
    vocabulary = {c: i for i, c in enumerate(["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    merges = [("C", "0"), ("E", "0"), ("s", "1"), ("Ġ", "|")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)  # type: ignore[no-untyped-call]
    return len(vocabulary)


def save_llama(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=save_tokenizer(folder), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=512, initializer_range=0.3,
        eos_token_id=END, bos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def save_tiny_mla(folder: Path) -> None:
    # vLLM's kernel on a CPU is made for latents of 512 and rotary parts of 64 alone
    save_mla(MLAForCausalLM(MLAConfig(
        vocab_size=save_tokenizer(folder), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, kv_lora_rank=512, qk_nope_head_dim=32, qk_rope_head_dim=64, v_head_dim=32,
        initializer_range=0.1,
    ), 1).eval(), folder)  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Scratch of all servers of this module: what vLLM finds out about a kind of model it need not find out again."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("work")
        patch.setattr(vllm_server, "WORK", folder)
        yield folder


@pytest.fixture(scope="module", params=[save_llama, save_tiny_mla])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, work: Path
) -> Iterator[tuple[Path, VllmServer]]:
    folder = tmp_path_factory.mktemp("model")
    request.param(folder)
    with VllmServer(folder, VLLM) as server:
        yield folder, server


PROMPT = "Rank C01 and C02 by E01, E02:"


@needs_vllm
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vllm_writes_what_the_model_writes_in_process(running: tuple[Path, VllmServer]) -> None:
    folder, server = running
    engine = VllmEngine(FolderTokens(folder), server)
    prompts = [PROMPT, "C01", "Who? " * 12]
    requests = [Request(key=prompt, prompt=prompt, max_new_tokens=24) for prompt in prompts]
    ours: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    ours.float().eval()
    drawn = run(engine, requests, Sampling(seed=3))
    for prompt, [greedy], [sampled] in zip(prompts, run(engine, requests, GREEDY), drawn, strict=True):
        ids = torch.tensor([engine.tokens.encode(prompt)])
        for answer in (greedy, sampled):
            with torch.inference_mode():
                logits = ours(torch.cat([ids, torch.tensor([answer.tokens])], dim=1)).logits[0, ids.shape[1] - 1 : -1]
            if answer is greedy:
                assert logits.argmax(-1).tolist() == list(answer.tokens)
            else:
                expected = logits.log_softmax(-1).gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
                torch.testing.assert_close(torch.tensor(answer.log_probs), expected, rtol=0, atol=1e-3)


@needs_vllm
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vllm_keeps_to_grammars_and_draws_the_same_again(running: tuple[Path, VllmServer]) -> None:
    folder, server = running
    engine = VllmEngine(folder, server)
    requests = [Request(key=f"k{i}", prompt=PROMPT, samples=4, grammar=GRAMMAR, max_new_tokens=80) for i in range(4)]
    answers = run(engine, requests, Sampling(seed=1))
    texts = [answer.text for several in answers for answer in several]
    assert len(set(texts)) > 4
    for answer in (answer for several in answers for answer in several):
        assert answer.finish == "stop" and re.fullmatch(LINE, answer.text), answer.text
        assert all(math.isfinite(p) and p <= 1e-6 for p in answer.log_probs)
    again = VllmEngine(folder, server, in_flight=1)
    assert [a.text for s in again.generate(requests[2:], Sampling(seed=1)) for a in s] == texts[8:]
    assert [a.text for s in again.generate(requests, Sampling(seed=2)) for a in s] != texts
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    [[answer]] = run(engine, [Request(key="s", prompt=PROMPT, schema=schema, max_new_tokens=60)])
    assert json.loads(answer.text) in ({"a": "x"}, {"a": "y"})
    with pytest.raises(SetupError, match="refuses it"):
        run(engine, [Request(key="b", prompt=PROMPT, grammar="root ::= nowhere\n", max_new_tokens=8)])


@needs_vllm
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vllm_killed_in_the_middle(tmp_path: Path, work: Path) -> None:
    save_llama(tmp_path / "model")
    with VllmServer(tmp_path / "model", VLLM) as server:
        group = server.group
        assert group is not None
        requests = [Request(key=f"k{i}", prompt=PROMPT, samples=2, max_new_tokens=200) for i in range(60)]
        answers = VllmEngine(tmp_path / "model", server, in_flight=2).generate(requests, Sampling())
        got = [next(answers), next(answers)]
        for process in members(group):
            if process != group:
                os.kill(process, signal.SIGKILL)
        with pytest.raises(TransientError, match=r"the (vLLM )?server"):
            got.extend(answers)
    assert 2 <= len(got) < 60 and all(len(several) == 2 for several in got)
    assert gone(group)
