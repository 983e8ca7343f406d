"""The engine in process: answers in order, the same whatever the batches and the way of generating."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch

from pipeline.certificates import Limits, grammar, parse
from pipeline.engines import Answer, Engine, Request, Sampling, TransformersEngine
from pipeline.errors import DataError, ParamError, SetupError
from pipeline.policies import Policy, make_policy
from pipeline.shared_prefix import Sample
from tests.builders import PLAN, random_window, story
from tests.test_policies import END, byte_tokenizer, tiny_mla

LIMITS = Limits()
RULES = grammar(story(), PLAN, 2, LIMITS)
DRAWN = Sampling(temperature=1.3, top_p=0.95, seed=4)


def llama_policy(**changes: Any) -> Policy:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=264, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, max_position_embeddings=256, initializer_range=0.3, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, **changes,
    )  # fmt: skip
    shell = make_policy(tiny_mla(), byte_tokenizer(), end=END)
    model: Any = LlamaForCausalLM(config)
    return replace(shell, model=model.eval(), name="llama", positions=256)


@pytest.fixture(scope="module", params=["mla", "llama"])
def policy(request: pytest.FixtureRequest) -> Policy:
    if request.param == "llama":
        return llama_policy()
    return make_policy(tiny_mla(max_position_embeddings=256), byte_tokenizer(), end=END)


def requests_of(*lengths: int, **how: Any) -> list[Request]:
    return [Request(key=f"r{i}", prompt="ab c." * n, **{"max_new_tokens": 9, **how}) for i, n in enumerate(lengths)]


def tokens(groups: list[list[Answer]]) -> list[list[tuple[int, ...]]]:
    return [[answer.tokens for answer in answers] for answers in groups]


def test_answers_are_complete_and_in_order(policy: Policy) -> None:
    engine: Engine = TransformersEngine(policy)
    requests = [*requests_of(3, 20, samples=3), replace(requests_of(5)[0], key="other", max_new_tokens=4)]
    groups = list(engine.generate(requests, DRAWN))
    assert [len(answers) for answers in groups] == [3, 3, 1]
    for request, answers in zip(requests, groups, strict=True):
        for answer in answers:
            assert answer.prompt_tokens == len(request.prompt) == engine.count(request.prompt)
            assert answer.model_log_probs is not None
            assert len(answer.tokens) == len(answer.log_probs) == len(answer.model_log_probs) <= request.max_new_tokens
            stopped = answer.tokens[-1] == policy.eos
            assert answer.finish == ("stop" if stopped else "length")
            assert answer.text == policy.decode(list(answer.tokens[: -1 if stopped else None]))
            assert answer.seconds > 0
    assert len({answer.tokens for answers in groups for answer in answers}) == 7


def test_what_is_drawn_does_not_depend_on_the_batches(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = requests_of(7, 1, 30, 12, samples=3)
    whole = list(TransformersEngine(policy).generate(requests, DRAWN))
    widths: list[int] = []
    split = TransformersEngine(policy, batch_tokens=80, batch_rows=6)
    original = TransformersEngine._samples

    def counted(self: TransformersEngine, batch: Any, sampling: Sampling) -> Any:
        widths.append(len(batch))
        return original(self, batch, sampling)

    monkeypatch.setattr(TransformersEngine, "_samples", counted)
    assert tokens(list(split.generate(requests, DRAWN))) == tokens(whole)
    assert widths == [2, 1, 1]  # 35 and 5 padded to 35; 150 alone is above the bound; 60
    assert tokens(list(split.generate(requests[::-1], DRAWN))) == tokens(whole[::-1])
    alone = [next(split.generate([request], DRAWN)) for request in requests]
    assert tokens(alone) == tokens(whole)
    other = list(split.generate(requests, replace(DRAWN, seed=5)))
    assert all(one != two for one, two in zip(tokens(other), tokens(whole), strict=True))


def test_rows_bound_a_batch_and_answers_come_as_soon_as_it_is_done(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(policy, batch_rows=8)
    original = TransformersEngine._samples
    done: list[int] = []

    def counted(self: TransformersEngine, batch: Any, sampling: Sampling) -> Any:
        done.append(len(batch))
        return original(self, batch, sampling)

    monkeypatch.setattr(TransformersEngine, "_samples", counted)
    answers: Iterator[list[Answer]] = engine.generate(requests_of(2, 2, 2, 2, 2, samples=4), DRAWN)
    assert done == []
    for _ in range(3):
        next(answers)
    assert done == [2, 2]
    assert len(list(answers)) == 2 and done == [2, 2, 1]


def test_the_plain_way_draws_the_same_samples_with_the_same_log_probs() -> None:
    """A Llama both ways: free and under a grammar, drawn and greedy. Its own generation settings are left aside."""
    policy = llama_policy()
    model: Any = policy.model
    model.generation_config.repetition_penalty = 3.0
    fast, plain = TransformersEngine(policy), TransformersEngine(policy)
    plain.decoder, plain.way = None, "generate"
    for sampling in (DRAWN, Sampling(temperature=0)):
        for rules in (None, RULES):
            requests = requests_of(4, 15, samples=3, grammar=rules, max_new_tokens=80 if rules else 12)
            ours, theirs = (list(engine.generate(requests, sampling)) for engine in (fast, plain))
            assert tokens(ours) == tokens(theirs)
            for one, two in zip(chain(*ours), chain(*theirs), strict=True):
                assert (one.text, one.finish, one.prompt_tokens) == (two.text, two.finish, two.prompt_tokens)
                assert one.log_probs == pytest.approx(two.log_probs, abs=2e-4)
                assert one.model_log_probs == pytest.approx(two.model_log_probs, abs=2e-4)
    assert model.generation_config.repetition_penalty == 3.0


def test_a_model_of_another_kind_is_generated_with_plainly_and_says_so(policy: Policy) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    assert (TransformersEngine(policy).way, TransformersEngine(policy).decoder is None) == ("shared prefix", False)
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=264, n_embd=24, n_layer=2, n_head=2, n_positions=256, bos_token_id=None,
                        eos_token_id=None, initializer_range=0.4)  # fmt: skip
    model: Any = GPT2LMHeadModel(config)
    engine = TransformersEngine(replace(policy, model=model.eval()))
    assert engine.way == "generate" and engine.decoder is None and "GPT2LMHeadModel" in engine.why
    (answers,) = engine.generate(requests_of(6, samples=4), DRAWN)
    for answer in answers:
        ids = [*policy.encode("ab c." * 6), *answer.tokens]
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, 29:-1].log_softmax(-1)
        expected = logits.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0].tolist()
        assert answer.model_log_probs == pytest.approx(expected, abs=2e-4)
    assert len({answer.tokens for answer in answers}) == 4


def test_answers_under_grammars_parse(policy: Policy) -> None:
    """Every request its own window, free ones among them, in one batch."""
    windows = [story(), random_window(3, candidates=5)]
    requests = [
        Request(key=f"w{i}", prompt="rank:", samples=4, grammar=grammar(window, PLAN, 2, LIMITS), max_new_tokens=120)
        for i, window in enumerate(windows)
    ]
    free = Request(key="free", prompt="rank:", samples=4, max_new_tokens=120)
    schema = {"type": "array", "maxItems": 3, "items": {"enum": [1, 2]}}
    listed = Request(key="list", prompt="rank:", samples=4, schema=schema, max_new_tokens=120)
    *held, loose, lists = TransformersEngine(policy).generate([*requests, free, listed], DRAWN)
    for window, answers in zip(windows, held, strict=True):
        for answer in answers:
            assert answer.finish == "stop"
            assert all(entry.slots for entry in parse(answer.text, window, PLAN, 2, LIMITS))
    assert {answer.text for answer in lists} <= {"[]", "[1]", "[2]"} | {
        f"[{','.join(map(str, some))}]" for n in (2, 3) for some in _pairs(n)
    }
    (alone,) = TransformersEngine(policy).generate([free], DRAWN)
    assert tokens([alone]) == tokens([loose])


def _pairs(n: int) -> list[list[int]]:
    return [[1 + (i >> j & 1) for j in range(n)] for i in range(2**n)]


def test_requests_are_checked_before_anything_is_generated(policy: Policy) -> None:
    engine = TransformersEngine(policy)
    good = Request(key="a", prompt="x")
    for requests, error, message in (
        ([good, good], ParamError, "same key"),
        ([good, replace(good, key="b", prompt="")], DataError, "request 'b': the prompt is empty"),
        ([good, replace(good, key="b", prompt="y" * 200)], DataError, "'b': the prompt has 200 tokens; with 256 new"),
        ([good, replace(good, key="b", samples=0)], ParamError, "'b': must be at least 1"),
        ([good, replace(good, key="b", grammar=RULES, schema={})], ParamError, "both a grammar and a schema"),
    ):
        with pytest.raises(error, match=message):
            engine.generate([replace(r, max_new_tokens=256 if "y" in r.prompt else 9) for r in requests], DRAWN)
    with pytest.raises(ParamError, match="batch_rows"):
        TransformersEngine(policy, batch_rows=0)


def test_a_grammar_that_cannot_be_enforced_is_an_error(policy: Policy) -> None:
    engine = TransformersEngine(policy)
    with pytest.raises(SetupError, match="something unknown"):
        next(engine.generate(requests_of(1, grammar="root ::= [a-z]\n"), DRAWN))


def test_a_text_is_never_altered(policy: Policy) -> None:
    """Spaces at both ends, a special token within and broken characters come back as they were written."""
    engine = TransformersEngine(policy)
    written = policy.encode("  C01 , .<|pad|> \n")
    assert policy.backend.token_to_id("<|pad|>") in written
    zeros = [0.0] * len(written)
    cut = engine._answer(Sample(0, 0, written, zeros, zeros, "length"), 1, 1.0)
    assert cut.text == "  C01 , .<|pad|> \n"
    ended = engine._answer(Sample(0, 0, [*written, policy.eos], [*zeros, 0.0], [*zeros, 0.0], "stop"), 1, 1.0)
    assert ended.text == cut.text and ended.tokens[-1] == policy.eos
