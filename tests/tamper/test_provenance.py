"""Signed provenance: every changed byte of ranking, certificate, model, documents, parameters or statement is named."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import provenance, workspace
from pipeline.errors import DataError, SetupError
from pipeline.provenance import (
    Problem,
    canonical,
    envelope,
    open_envelope,
    parse_envelope,
    private_key,
    public_key,
    sign,
    verify,
)
from pipeline.workspace import Plan, Step
from tests.conftest import Run

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "data/ingest/documents.parquet": b"the documents",
    "data/rank/s/closed/certificates.parquet": b"the certificates",
    "data/rank/s/closed/generations.parquet": b"what was generated",
    "data/rank/s/closed/rankings.parquet": b"the rankings",
    "models/reward/config.json": b'{"l2": 1}',
    "models/reward/model.safetensors": b"weights",
    "requirements/main.txt": b"numpy==2.4.0\n",
    "dvc.lock": b"schema: '2.0'\n",
}
PLAN = Plan(
    (
        Step("ingest", (), ("data/ingest/documents.parquet",)),
        Step("reward", ("ingest",), ("models/reward", "data/reward")),
        Step("heldout", ("ingest",), ("models/heldout",)),
        Step("rank@s-closed", ("reward",), ("data/rank/s/closed",)),
    ),
    (),
)
STATEMENT = Path("data/provenance/rank@s-closed.intoto.json")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workspace, "plan", lambda targets=(): PLAN)
    monkeypatch.setattr(workspace, "changed", lambda targets=(): {})
    for name, content in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    git = "git -c user.name=t -c user.email=t@example.org"
    subprocess.run(f"git init -q && git add -A && {git} commit -qm x", shell=True, check=True)
    provenance.new_key(Path("keys/one.pem"))
    sign(Path("data/rank"), Path("keys/one.pem"))
    return tmp_path


def check() -> list[Problem]:
    return verify(STATEMENT, public_key(Path("keys/one.pub")))


def test_what_was_signed_holds_and_says_what_it_should(place: Path) -> None:
    assert check() == []
    content = open_envelope(STATEMENT, public_key(Path("keys/one.pub")))
    assert [s["name"] for s in content["subject"]] == sorted(
        name for name in FILES if name.startswith(("data", "models"))
    )
    definition = content["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["stage"] == "rank@s-closed"
    assert definition["externalParameters"]["params"]["seed"] == 20250521
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
    assert definition["resolvedDependencies"][0] == {"name": "source", "digest": {"gitCommit": head}}
    assert {d["name"] for d in definition["resolvedDependencies"][1:]} == {
        "params.yaml", "dvc.lock", "requirements/main.txt",
    }  # fmt: skip


def test_signing_twice_gives_the_same_bytes(place: Path) -> None:
    before = STATEMENT.read_bytes()
    sign(Path("data/rank"), Path("keys/one.pem"))
    assert STATEMENT.read_bytes() == before


@pytest.mark.parametrize("name", [*FILES, "params.yaml"])
def test_every_changed_byte_of_a_file_is_named(place: Path, name: str) -> None:
    whole = Path(name).read_bytes()
    for i in range(0, len(whole), max(1, len(whole) // 40)):
        Path(name).write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        assert [p.file for p in check()] == [name], i
    Path(name).write_bytes(whole + b" ")
    assert [p.file for p in check()] == [name]
    Path(name).unlink()
    assert check() == [Problem(name, "missing")]


def test_every_changed_byte_of_the_statement_is_found(place: Path) -> None:
    key, whole = public_key(Path("keys/one.pub")), STATEMENT.read_bytes()
    assert len(whole) > 3000
    for i, byte in enumerate(whole):
        for other in [byte ^ 1] if i % 9 else {byte ^ 32, ord(" "), ord("A")} - {byte}:
            with pytest.raises(DataError) as caught:
                parse_envelope(whole[:i] + bytes([other]) + whole[i + 1 :], STATEMENT, key)
            assert str(caught.value).startswith(str(STATEMENT)), i
    for text in (whole + b"\n", whole[:-1], b" " + whole, whole.replace(b"\n", b"\r\n"), b"", whole[: len(whole) // 2]):
        STATEMENT.write_bytes(text)
        assert [p.file for p in check()] == [str(STATEMENT)]


def _envelope(change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(STATEMENT.read_text())
    change(value)
    STATEMENT.write_text(canonical(value))


def _payload(value: dict[str, Any]) -> None:
    content = json.loads(base64.b64decode(value["payload"]))
    content["subject"][0]["digest"]["sha256"] = "0" * 64
    value["payload"] = base64.b64encode(json.dumps(content, indent=1, sort_keys=True).encode()).decode()


def _signature(value: dict[str, Any]) -> None:
    value["signatures"][0]["sig"] = base64.b64encode(bytes(64)).decode()


FORGED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "another digest in the payload": (_payload, "signature does not hold"),
    "a signature of zeros": (_signature, "signature does not hold"),
    "another key id": (lambda v: v["signatures"][0].update(keyid="0" * 64), "another key"),
    "another payload type": (lambda v: v.update(payloadType="text/plain"), "bytes are not those"),
    "a field more": (lambda v: v.update(note="trust me"), "bytes are not those"),
    "two signatures": (lambda v: v["signatures"].append(v["signatures"][0]), "not a DSSE envelope"),
    "no signature": (lambda v: v["signatures"].clear(), "not a DSSE envelope"),
    "no payload": (lambda v: v.pop("payload"), "not a DSSE envelope"),
}


@pytest.mark.parametrize("row", FORGED)
def test_a_forged_envelope_is_refused(place: Path, row: str) -> None:
    change, what = FORGED[row]
    _envelope(change)
    (problem,) = check()
    assert problem.file == str(STATEMENT) and what in problem.what


def test_a_statement_signed_by_somebody_else_is_refused(place: Path) -> None:
    provenance.new_key(Path("keys/two.pem"))
    Path("data/rank/s/closed/rankings.parquet").write_bytes(b"better rankings")
    sign(Path("data/rank"), Path("keys/two.pem"), allow_changes=True)
    assert [p.what for p in check()] == ["signed with another key"]


def test_signed_content_of_another_kind_is_refused(place: Path) -> None:
    STATEMENT.write_text(envelope({"_type": "else", "subject": []}, private_key(Path("keys/one.pem"))))
    assert [p.what for p in check()] == ["signed, but no in-toto statement of SLSA provenance"]


def test_a_path_out_of_the_workspace_is_not_followed(place: Path) -> None:
    content = open_envelope(STATEMENT, public_key(Path("keys/one.pub")))
    content["subject"][0]["name"] = "../secret"
    STATEMENT.write_text(envelope(content, private_key(Path("keys/one.pem"))))
    assert Problem("../secret", "a path that leaves the workspace") in check()


def test_an_added_file_is_named(place: Path) -> None:
    Path("data/rank/s/closed/more.parquet").write_bytes(b"")
    assert [p.file for p in check()] == ["data/rank/s/closed/more.parquet"]


def test_rankings_that_are_not_what_dvc_lock_says_are_not_signed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "changed", lambda targets=(): {"rank@s-closed": ["changed outs"]})
    with pytest.raises(DataError, match=r"not what dvc\.lock says: rank@s-closed"):
        sign(Path("data/rank"), Path("keys/one.pem"))


def test_changes_that_no_revision_holds_are_signed_only_when_allowed(place: Path) -> None:
    Path("params.yaml").write_text(Path("params.yaml").read_text() + "# note\n")
    with pytest.raises(DataError, match=r"not in the revision: params\.yaml"):
        sign(Path("data/rank"), Path("keys/one.pem"))
    sign(Path("data/rank"), Path("keys/one.pem"), allow_changes=True)
    content = open_envelope(STATEMENT, public_key(Path("keys/one.pub")))
    assert content["predicate"]["buildDefinition"]["internalParameters"] == {"changedFiles": ["params.yaml"]}


def test_keys_are_guarded(place: Path) -> None:
    key = Path("keys/one.pem")
    assert key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SetupError, match="there is a key already"):
        provenance.new_key(key)
    key.chmod(0o644)
    with pytest.raises(SetupError, match="others may read"):
        private_key(key)
    with pytest.raises(SetupError, match="no signing key"):
        private_key(Path("keys/none.pem"))
    key.chmod(0o600)
    key.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    with pytest.raises(SetupError, match="not an unencrypted private key"):
        private_key(key)
    assert "PRIVATE" not in STATEMENT.read_text()


def test_the_commands_name_what_has_changed(place: Path, run: Run) -> None:
    asked = ("verify", "data/rank", "--provenance", "--public-key", "keys/one.pub")
    code, out, _ = run(*asked)
    assert (code, out) == (0, "1 of 1 statements hold\n")
    Path("models/reward/model.safetensors").write_bytes(b"weightz")
    code, out, _ = run(*asked)
    assert code == 1 and "models/reward/model.safetensors: changed: " in out and "0 of 1" in out
    code, out, _ = run(*asked, "--json")
    assert code == 1 and [p["file"] for p in json.loads(out)["statements"][str(STATEMENT)]] == [
        "models/reward/model.safetensors"
    ]
    code, out, err = run("sign", "data/rank", "--key", "keys/two.pem")
    assert code == 1 and err.count("\n") == 1 and "no signing key here" in err
    code, out, err = run("sign", "data/rank", "--key", "keys/two.pem", "--new-key", "--allow-changes")
    assert code == 0 and out == f"{STATEMENT}\n" and "public key: keys/two.pub" in err
    assert verify(STATEMENT, public_key(Path("keys/two.pub"))) == []
