"""What goes wrong around rankings by a policy is one line, and costs no shard that was written before."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import files, tables
from pipeline.errors import CertrankError, DataError, SetupError, TransientError
from pipeline.params import Params
from pipeline.vllm_engine import VllmEngine
from stages.rank_policy import __main__ as stage
from stages.rank_policy.questions import Voice
from tests.stages.test_rank_policy import Scripted, empty_list, output, params, voice_of, workspace
from tests.test_policies import END as BYTES_END
from tests.test_policies import byte_tokenizer, tiny_llama
from tests.test_vllm import Bytes, Fake, fake

__all__ = ["fake", "workspace"]


def voice_at(server: Fake) -> Voice:
    engine = VllmEngine(Bytes(), server.server, in_flight=1)
    return Voice(engine, Bytes().decode, ("<|end|>",), engine.limit, "fake")


def test_a_server_that_dies_in_the_middle_loses_no_shard(
    workspace: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "SHARD", 1)
    fake.limit = 1_000_000
    stage.main("sft", "closed", params(), voice_at(fake))
    whole = output("sft")
    asked = [sent["prompt"] for sent in fake.received]
    for work in files.WORK.glob("rank_policy-sft-closed-*"):
        for kept in work.iterdir():
            kept.unlink()
    for file in Path("data/rank/sft/closed").iterdir():
        file.unlink()

    fake.received.clear()
    fake.fail = lambda sent: 0 if sent["prompt"] == asked[1] else None
    with pytest.raises(
        TransientError, match=r"request w2\|.*is gone.*; start again: what was written is kept"
    ) as caught:
        stage.main("sft", "closed", params(), voice_at(fake))
    assert "\n" not in str(caught.value) and not list(Path("data/rank/sft").rglob("*.parquet"))
    assert caught.value.failure_class == "transient"

    fake.fail = lambda sent: None
    fake.received.clear()
    stage.main("sft", "closed", params(), voice_at(fake))
    assert [sent["prompt"] for sent in fake.received] == [asked[1]], "the first shard's answers were kept"
    after = output("sft")
    for name in ("rankings", "certificates", "generations"):
        assert after[f"{name}.parquet"] == whole[f"{name}.parquet"]


def on_base(base: str | Path) -> Params:
    raw = params().model_dump(by_alias=True)
    raw["policy"]["base"] = str(base)
    return Params.model_validate(raw)


def test_a_base_that_is_not_there_is_one_line_with_the_way_out(workspace: Path) -> None:
    with pytest.raises(SetupError, match=r"^nowhere: no such folder; .*smollm2-135m.*make train-base") as caught:
        stage.main("zero_shot", "closed", on_base("nowhere"))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"^models/sft: not a complete artifact: .*; run `dvc repro`$"):
        stage.main("sft", "closed", params())


@pytest.mark.parametrize("without", ["|", "=", "."])
def test_a_base_that_cannot_spell_certificates_is_one_line(workspace: Path, without: str) -> None:
    tiny_llama(workspace / "base", byte_tokenizer(without=without))
    with pytest.raises(
        SetupError, match=r"^base: the tokenizer cannot write the character .* of certificates"
    ) as caught:
        stage.main("zero_shot", "closed", on_base("base"))
    assert "\n" not in str(caught.value) and BYTES_END not in str(caught.value)


def test_a_prompt_over_the_budget_is_counted_per_list_and_named(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = params().model_dump(by_alias=True)
    raw["policy"]["budget"] = 64
    engine = Scripted(empty_list)
    stage.main("sft", "closed", Params.model_validate(raw), voice_of(engine))
    assert engine.asked == [] and "2 lists over the budget" in capsys.readouterr().err
    rows = tables.read("rank/sft/closed/generations")
    assert rows.select("status", "reject_code", "finish").unique().rows() == [
        ("uncertified", "prompt_over_budget", None)
    ]


def test_answers_of_another_form_are_named_and_not_used(workspace: Path) -> None:
    stage.main("sft", "closed", params(), voice_of(Scripted(empty_list)))
    (kept,) = files.WORK.glob("rank_policy-sft-closed-*/00000.json")
    kept.write_text("{}", encoding="utf-8")
    with pytest.raises(CertrankError, match=r"00000\.json") as caught:
        stage.main("sft", "closed", params(), voice_of(Scripted(empty_list)))
    assert "\n" not in str(caught.value)
