"""The mask: exactly the certificate language, over tokens of any tokenizer, the end token where a sentence may stop."""

from __future__ import annotations

import json
from functools import cache
from itertools import chain
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.certificates import Limits, grammar, longest_answer, parse
from pipeline.constrained import Compiled, Mask, Vocabulary, compile_grammar, compile_schema, to_lark
from pipeline.decoders import decoder_for
from pipeline.errors import CertificateError, DataError, SetupError
from pipeline.mla import MLAConfig, MLAForCausalLM
from pipeline.shared_prefix import Prompt, Sample, Sampling, generate
from tests.builders import PLAN, random_window, story

END, OTHER = "<end>", "<other>"
LIMITS = Limits()
WINDOW = story()
RULES = grammar(WINDOW, PLAN, 2, LIMITS)


@cache
def tokenizer(size: int = 330) -> Tokenizer:
    """Byte-level BPE; 258 is bytes and two special tokens alone, more has merges that cross the language's parts."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END, OTHER], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    rng = Random(0)
    handles = [f"E{i:02d}" for i in range(1, 11)]
    made.train_from_iterator(
        [
            f"C0{rng.randint(1, 4)} s1={','.join(rng.sample(handles, 2))} s3={rng.choice(handles)} | C02 ."
            for _ in range(200)
        ],
        trainer,
    )
    return made


@cache
def vocabulary(size: int = 330, width: int = 350) -> Vocabulary:
    return Vocabulary(tokenizer(size), end=END, width=width)


def legal(compiled: Compiled, tokens: list[int]) -> set[int]:
    """Tokens that may come after these."""
    logits = Mask([compiled])(torch.zeros(1, compiled.vocabulary.width), [Sample(0, 0, tokens)])
    return set(logits[0].isfinite().nonzero()[:, 0].tolist())


def accepts(compiled: Compiled, text: str) -> bool:
    """Whether a text is a sentence: every byte on its own is legal, and so is the end behind them."""
    tokens = tokenizer(258).encode(text).ids
    matcher = compiled.start.deep_copy()
    return matcher.consume_tokens(tokens) and matcher.is_accepting()


BYTES = compile_grammar(RULES, vocabulary(258))
MERGED = compile_grammar(RULES, vocabulary())


def parses(text: str) -> bool:
    try:
        return all(entry.slots for entry in parse(text, WINDOW, PLAN, 2, LIMITS))
    except CertificateError:
        return False


def test_the_merges_cross_the_parts_of_the_language() -> None:
    """Otherwise the tests with merges would show nothing that those over bytes do not."""
    texts = [tokenizer().decode([i]) for i in range(258, tokenizer().get_vocab_size())]
    assert any("=" in text and "E" in text for text in texts)
    assert any(" |" in text for text in texts)


# ---- the language ---------------------------------------------------------------------------------------------------


@st.composite
def lines(draw: st.DrawFn) -> str:
    """Lines of the language, or nearly."""
    entries = []
    for _ in range(draw(st.integers(0, 2))):
        slots = draw(st.lists(st.sampled_from(["s1", "s2", "s3"]), min_size=1, max_size=3, unique=True).map(sorted))
        cited = [draw(st.lists(st.integers(1, 10), min_size=1, max_size=2)) for _ in slots]
        words = [f"{slot}={','.join(f'E{i:02d}' for i in some)}" for slot, some in zip(slots, cited, strict=True)]
        entries.append(" ".join([f"C0{draw(st.integers(1, 4))}", *words]))
    line = list(" | ".join(entries) + " ." if entries else ".")
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(line)))
        line[at : at + draw(st.integers(0, 4))] = draw(
            st.sampled_from(["", " ", ".", ",E01", "=", " | C01", " s3=E02", "E11", "C5", "s1=E01", " .", "\n", "é"])
        )
    return "".join(line)


@given(lines())
@settings(max_examples=250)
def test_the_mask_is_exactly_the_language_of_certificates(text: str) -> None:
    assert accepts(BYTES, text) == parses(text)


@given(st.integers(0, 300), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=8)
def test_longest_answers_of_any_window_are_sentences(seed: int, k: int, handles: int) -> None:
    window, limits = random_window(seed), Limits(max_handles=handles)
    compiled = compile_grammar(grammar(window, PLAN, k, limits), vocabulary(258))
    text = longest_answer(window, PLAN, k, limits)
    assert accepts(compiled, text)
    for wrong in (text[:-1], text[:-2] + ".", text.replace("=", "= ", 1), text + " ", text.replace("s1", "s9", 1)):
        assert not accepts(compiled, wrong)


def test_the_end_token_is_legal_exactly_where_a_sentence_is_complete() -> None:
    end = vocabulary(258).end
    compiled = compile_grammar('root ::= "a" ("b" | "bc")? "c"? | "d"\n', vocabulary(258))
    encode = tokenizer(258).encode
    for text, expected in {"": "ad", "a": "bc", "ab": "c", "abc": "c", "abcc": "", "ac": "", "d": ""}.items():
        found = legal(compiled, encode(text).ids)
        assert found - {end} == {encode(char).ids[0] for char in expected}, text
        assert (end in found) == bool(text), text


def test_special_tokens_and_padding_of_the_matrix_are_never_legal() -> None:
    """Even where the spelling of a special token is itself a sentence."""
    compiled = compile_grammar(f'root ::= "{OTHER}" | "{END}"\n', vocabulary())
    found = legal(compiled, [])
    assert found and found.isdisjoint({0, 1, *range(tokenizer().get_vocab_size(), 350)})


def test_all_spellings_of_a_sentence_are_legal() -> None:
    text = "C02 s1=E07,E01 s3=E08 ."
    bytewise = tokenizer(258).encode(text).ids  # the ids of single bytes are the same
    merged = tokenizer().encode(text).ids
    assert len(merged) < len(bytewise) == len(text)
    for tokens in (merged, bytewise):
        for n, token in enumerate([*tokens, vocabulary().end]):
            assert token in legal(MERGED, tokens[:n])


# ---- generation -----------------------------------------------------------------------------------------------------


@cache
def model() -> MLAForCausalLM:
    config = MLAConfig(
        vocab_size=350, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, max_position_embeddings=256,
        initializer_range=0.4,
    )  # fmt: skip
    return MLAForCausalLM(config, seed=1).eval()


@given(st.integers(0, 10_000))
@settings(max_examples=5)
def test_constrained_samples_of_a_random_model_parse(seed: int) -> None:
    """Two windows and a free prompt in one batch; rows end at different times."""
    windows = [random_window(seed, candidates=5), WINDOW]
    masks: list[Compiled | None] = [
        compile_grammar(grammar(window, PLAN, 2, LIMITS), vocabulary()) for window in windows
    ]
    prompts = [Prompt(f"p{i}", (5 + i, 9)) for i in range(3)]
    how = Sampling(max_new_tokens=120, temperature=1.5, seed=seed, stop=frozenset({vocabulary().end}))
    mask = Mask([*masks, None])
    *held, free = generate(decoder_for(model()), prompts, 3, how, mask)
    for window, samples in zip(windows, held, strict=True):
        for sample in samples:
            assert sample.finish == "stop"  # 120 tokens hold the longest sentence even byte by byte
            entries = parse(tokenizer().decode(sample.tokens[:-1]), window, PLAN, 2, LIMITS)
            assert len(entries) <= 2 and all(entry.slots for entry in entries)
    assert generate(decoder_for(model()), prompts, 3, how, mask) == [*held, free]  # a mask may be used again
    (again,) = generate(decoder_for(model()), prompts[2:], 3, how)
    assert [sample.tokens for sample in free] == [sample.tokens for sample in again]


@given(st.integers(0, 10_000), st.integers(0, 30))
@settings(max_examples=40)
def test_a_legal_argmax_stays_the_argmax(seed: int, place: int) -> None:
    text = "C02 s1=E07,E01 s3=E08 | C01 s2=E01 ."
    tokens = [*tokenizer().encode(text).ids, vocabulary().end]
    before = tokens[: place % len(tokens)]
    logits = torch.randn(1, 350, generator=torch.Generator().manual_seed(seed))
    allowed = legal(MERGED, before)
    masked = Mask([MERGED])(logits.clone(), [Sample(0, 0, before)])
    assert torch.equal(masked[0, sorted(allowed)], logits[0, sorted(allowed)])
    likeliest = Random(seed).choice(sorted(allowed))
    logits[0, likeliest] = 9.0
    assert Mask([MERGED])(logits.clone(), [Sample(0, 0, before)]).argmax().item() == likeliest


def test_states_move_on_apart_and_end_with_their_samples() -> None:
    """Two samples of a prompt go different ways; what is legal for them is what a fresh mask says."""
    mask = Mask([MERGED])
    texts = ["C02 s1=E07,E01 s3=E08 .", "C01 s3=E02 | C04 s2=E01,E03 ."]
    samples = [Sample(0, number) for number in range(2)]
    ways = [[*tokenizer().encode(text).ids, vocabulary().end] for text in texts]
    for n in range(max(map(len, ways))):
        live = [sample for sample, way in zip(samples, ways, strict=True) if n < len(way)]
        rows = mask(torch.zeros(len(live), 350), live).isfinite()
        assert set(mask.states) == {(0, sample.number) for sample in live}
        for row, sample in zip(rows, live, strict=True):
            assert set(row.nonzero()[:, 0].tolist()) == legal(MERGED, sample.tokens)
            sample.tokens.append(ways[sample.number][n])
    assert list(chain(*(sample.tokens for sample in samples))) == list(chain(*ways))


def test_a_token_that_was_not_legal_is_an_error() -> None:
    with pytest.raises(DataError, match="sample 3: not in the grammar at token 1"):
        Mask([MERGED])(torch.zeros(1, 350), [Sample(0, 3, tokenizer().encode("=").ids)])


# ---- JSON schemas ---------------------------------------------------------------------------------------------------


def test_answers_to_a_schema_satisfy_it() -> None:
    schema = {"type": "object", "additionalProperties": False, "required": ["id", "spans"], "properties": {
        "id": {"enum": ["C01", "C02"]},
        "spans": {"type": "array", "maxItems": 2, "items": {"type": "boolean"}}}}  # fmt: skip
    compiled = compile_schema(schema, vocabulary())
    how = Sampling(max_new_tokens=80, temperature=1.5, seed=3, stop=frozenset({vocabulary().end}))
    (samples,) = generate(decoder_for(model()), [Prompt("a", (7,))], 8, how, Mask([compiled]))
    found = [json.loads(tokenizer().decode(sample.tokens[:-1])) for sample in samples]
    assert len({json.dumps(answer) for answer in found}) > 1
    for answer in found:
        assert sorted(answer) == ["id", "spans"] and answer["id"] in ("C01", "C02") and len(answer["spans"]) <= 2
        assert all(isinstance(span, bool) for span in answer["spans"])


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("entry ::= \"a\"\n", "no rule 'root'"),
        ("root ::= entry\n", "no rule 'entry'"),
        ('root ::= [a-z]\n', "something unknown"),
        ('root ::= "a"*\n', "something unknown"),
        ('root ::= "a\\n"\n', "something unknown"),
        ('root = "a"\n', "line 1 of the grammar is not a rule"),
        ('root ::= "a"\nroot ::= "b"\n', "line 2 of the grammar is not a rule of its own"),
        ('root ::= "a" root?\n', "cannot enforce the grammar: .*circular"),
        ('root ::= ("a"\n', "cannot enforce the grammar"),
    ],
)  # fmt: skip
def test_other_grammars_are_refused(rules: str, message: str) -> None:
    with pytest.raises(SetupError, match=message) as caught:
        compile_grammar(rules, vocabulary())
    assert "\n" not in str(caught.value)


def test_schemas_that_cannot_be_enforced_are_refused() -> None:
    with pytest.raises(SetupError, match="cannot enforce"):
        compile_schema({"type": "objct"}, vocabulary())
    with pytest.raises(SetupError, match="cannot enforce"):
        compile_schema({"type": "array", "uniqueItems": True}, vocabulary())


def test_a_vocabulary_without_a_needed_character_is_refused_by_name() -> None:
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"|"})
    made = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate([END, *alphabet])}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([END])
    lacking = Vocabulary(made, end=END, width=300)
    with pytest.raises(SetupError, match=r"no token for the character '\|'"):
        compile_grammar(RULES, lacking)
    with pytest.raises(SetupError, match=r"no token for the character '\|'"):
        compile_schema({"const": "|"}, lacking)
    compile_grammar(grammar(WINDOW, PLAN, 1, LIMITS), lacking)  # a list of one entry needs none


def test_vocabularies_are_checked() -> None:
    with pytest.raises(SetupError, match="no token '<no>'"):
        Vocabulary(tokenizer(), end="<no>", width=350)
    with pytest.raises(SetupError, match="330 tokens, the model 300"):
        Vocabulary(tokenizer(), end=END, width=300)


def test_names_that_differ_in_case_alone_stay_apart() -> None:
    compiled = compile_grammar('root ::= a A\na ::= "x"\nA ::= "y"\n', vocabulary(258))
    assert accepts(compiled, "xy") and not accepts(compiled, "xx")
    assert to_lark('root ::= a? ("b" | a)\na ::= "x"\n') == 'start: T0\nT0: T1? ( "b" | T1 )\nT1: "x"\n'
