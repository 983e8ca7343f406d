"""Signed provenance of published rankings: what was made, from what, by which code; and what has changed since.

`sign` writes one file per stage that published rankings: a DSSE envelope (https://github.com/secure-systems-lab/dsse)
around an in-toto statement v1 (https://in-toto.io/Statement/v1) whose predicate has the form of SLSA provenance v1
(https://slsa.dev/provenance/v1), signed with ed25519.

    subjects      every file of the ranking's outputs, of the models upstream of it, and of the corpus' documents
    parameters    the stage and the whole of params.yaml
    dependencies  the git revision; params.yaml; dvc.lock, which pins code and data of every stage;
                  requirements/main.txt

`verify` names every file whose bytes differ from the statement, that is missing or that has been added, and refuses an
envelope of which any byte has changed. What it does not prove: that the rankings are good (`certrank verify`), or who
holds the key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from pipeline import workspace
from pipeline.errors import DataError, SetupError
from pipeline.files import sha256_file, write_text
from pipeline.params import load_params
from pipeline.secrets import redact
from pipeline.workspace import Plan, Step

FOLDER = Path("data/provenance")
SUFFIX = ".intoto.json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:certrank:dvc-stage:v1"
BUILDER = "urn:certrank:local"
PINNED = ("params.yaml", "dvc.lock", "requirements/main.txt")
"""Files that say how it was made."""
RANKINGS = "rankings.parquet"
DOCUMENTS = Path("data/ingest/documents.parquet")
MODELS = "models"
KEY = Path("~/.config/certrank/signing-key.pem")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that does not hold: the file it is about, and what is wrong with it."""

    file: str
    what: str


# ---- keys -----------------------------------------------------------------------------------------------------------


def new_key(path: Path) -> Path:
    """Make a key pair: `path` for its owner alone, and the public key beside it as .pub.

    Raises:
        SetupError: there is a key already.
    """
    path = path.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    except FileExistsError:
        raise SetupError("there is a key already", file=path, mend="give another --key") from None
    public = public_path(path)
    write_text(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())
    return public


def public_path(key: Path) -> Path:
    return key.with_suffix(".pub").expanduser()


def private_key(path: Path) -> Ed25519PrivateKey:
    """The signing key.

    Raises:
        SetupError: missing, not an ed25519 key, or readable by others.
    """
    path = path.expanduser()
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise SetupError("others may read this key", file=path, mend=f"chmod 600 {path}")
        key = load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError:
        raise SetupError("no signing key here", file=path, mend="`certrank sign --new-key` makes one") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise SetupError("not an unencrypted private key in PEM", file=path) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SetupError("not an ed25519 key", file=path)
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """The key to verify with.

    Raises:
        SetupError: missing, or not an ed25519 key.
    """
    path = path.expanduser()
    try:
        key = load_pem_public_key(path.read_bytes())
    except FileNotFoundError:
        raise SetupError("no public key here", file=path, mend="--public-key FILE of whoever signed") from None
    except (ValueError, UnsupportedAlgorithm):
        raise SetupError("not a public key in PEM", file=path) from None
    if not isinstance(key, Ed25519PublicKey):
        raise SetupError("not an ed25519 key", file=path)
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """Hex sha256 of the raw public key."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()


# ---- statements -----------------------------------------------------------------------------------------------------


def published(plan: Plan, path: Path) -> list[tuple[Step, Path]]:
    """(stage, folder) of every output in or below `path` that holds rankings.

    Raises:
        DataError: there is none.
    """
    found = [
        (step, Path(out)) for step in plan.steps for out in step.outs
        if (Path(out) / RANKINGS).is_file() and (Path(out) == path or Path(out).is_relative_to(path))
    ]  # fmt: skip
    if not found:
        raise DataError("no rankings of a stage here", file=path, mend="run `dvc repro`")
    return found


def statement(step: Step, plan: Plan, allow_changes: bool = False) -> dict[str, Any]:
    """The in-toto statement of a stage that published rankings.

    Raises:
        DataError: the work tree has changes that no revision holds, unless they are allowed.
    """
    revision, changes = code_revision()
    if changes and not allow_changes:
        raise DataError(f"not in the revision: {', '.join(changes[:3])}", mend="commit, or give --allow-changes")
    params = load_params().model_dump(mode="json", by_alias=True)
    by_name = {s.name: s for s in plan.steps}
    models = [out for name in upstream(step, by_name) for out in by_name[name].outs if Path(out).parts[0] == MODELS]
    subjects = sorted({file for out in (*step.outs, *models, str(DOCUMENTS)) for file in files_of(Path(out))})
    pinned = [{"name": name, "digest": {"sha256": sha256_file(name)}} for name in PINNED if Path(name).is_file()]
    return {
        "_type": STATEMENT,
        "subject": [{"name": file, "digest": {"sha256": sha256_file(file)}} for file in subjects],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"stage": step.name, "params": params},
                "internalParameters": {"changedFiles": changes},
                "resolvedDependencies": [{"name": "source", "digest": {"gitCommit": revision}}, *pinned],
            },
            "runDetails": {"builder": {"id": BUILDER}},
        },
    }  # fmt: skip


def upstream(step: Step, by_name: dict[str, Step]) -> set[str]:
    """Names of all stages that a stage stands on."""
    found: set[str] = set()
    todo = list(step.upstream)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo.extend(by_name[name].upstream)
    return found


def files_of(path: Path) -> Iterator[str]:
    """A file itself, or every file below a folder."""
    if path.is_file():
        yield path.as_posix()
    else:
        yield from (file.as_posix() for file in path.rglob("*") if file.is_file())


def code_revision() -> tuple[str, list[str]]:
    """The git commit, and the tracked files that differ from it.

    Raises:
        DataError: no git repository, or no commit in it.
    """
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        raise DataError("provenance needs a git revision of the code", mend="`git init`, `git commit`")
    changed = subprocess.run(["git", "diff", "--name-only", "HEAD"], capture_output=True, text=True, check=True)
    return head.stdout.strip(), changed.stdout.split("\n")[:-1]


# ---- signing and verifying ------------------------------------------------------------------------------------------


def sign(path: Path, key: Path = KEY, allow_changes: bool = False) -> list[Path]:
    """Sign the rankings in or below a folder; the files written.

    Raises:
        DataError: no rankings, or they are not what dvc.lock says.
        SetupError: the key cannot be used.
    """
    signer = private_key(key)
    whole = workspace.plan()
    found = published(whole, path)
    if left := workspace.changed(sorted({step.name for step, _ in found})):
        raise DataError(f"not what dvc.lock says: {', '.join(sorted(left))}", mend="run `dvc repro`")
    written = []
    for step, _ in found:
        target = FOLDER / f"{step.name}{SUFFIX}"
        write_text(target, envelope(statement(step, whole, allow_changes), signer))
        written.append(target)
    return written


def envelope(content: dict[str, Any], key: Ed25519PrivateKey) -> str:
    """The DSSE envelope of a statement, as the one text that `verify` accepts."""
    text = json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
    payload = redact(text).encode()
    signature = key.sign(pre_authentication(payload))
    return canonical({
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": key_id(key.public_key()), "sig": base64.b64encode(signature).decode()}],
    })  # fmt: skip


def canonical(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def pre_authentication(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding of type and payload."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def open_envelope(file: Path, key: Ed25519PublicKey) -> dict[str, Any]:
    """The statement in a file, once its signature has been checked; errors as in `parse_envelope`."""
    try:
        return parse_envelope(file.read_bytes(), file, key)
    except FileNotFoundError:
        raise DataError("missing: nothing was signed under this name", file=file, mend="`certrank sign`") from None


def parse_envelope(text: bytes, file: Path, key: Ed25519PublicKey) -> dict[str, Any]:
    """The statement in an envelope whose signature holds.

    Raises:
        DataError: the envelope is not exactly what was written, or its signature does not hold under this key.
    """
    try:
        raw = json.loads(text)
        (signature,) = raw["signatures"]
        payload = base64.b64decode(raw["payload"], validate=True)
        signed = base64.b64decode(signature["sig"], validate=True)
        fields = {"payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD_TYPE,
                  "signatures": [{"keyid": signature["keyid"], "sig": base64.b64encode(signed).decode()}]}  # fmt: skip
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise DataError("not a DSSE envelope of one signature", file=file) from None
    if text != canonical(fields).encode():
        raise DataError("the envelope was changed: its bytes are not those that `certrank sign` writes", file=file)
    if signature["keyid"] != key_id(key):
        raise DataError("signed with another key", file=file, mend="--public-key FILE of whoever signed")
    try:
        key.verify(signed, pre_authentication(payload))
    except InvalidSignature:
        raise DataError("the statement was changed: its signature does not hold", file=file) from None
    content: dict[str, Any] = json.loads(payload)
    if content.get("_type") != STATEMENT or content.get("predicateType") != PREDICATE:
        raise DataError("signed, but no in-toto statement of SLSA provenance", file=file)
    return content


def verify(file: Path, key: Ed25519PublicKey, root: Path = Path()) -> list[Problem]:
    """Everything that differs from a signed statement; empty when all of it holds.

    Args:
        file: the envelope.
        key: of whoever is trusted to have signed it.
        root: the workspace that the statement's paths are relative to.
    """
    try:
        content = open_envelope(file, key)
    except DataError as error:
        return [Problem(str(file), error.what)]
    definition = content["predicate"]["buildDefinition"]
    wanted = {item["name"]: item["digest"]["sha256"] for item in content["subject"]}
    pinned = {item["name"]: item["digest"]["sha256"] for item in definition["resolvedDependencies"][1:]}
    problems = [p for name, digest in {**wanted, **pinned}.items() if (p := compare(root, name, digest)) is not None]
    folders = {str(Path(name).parent) for name in wanted if Path(name).name == RANKINGS}
    here = {f"{folder}/{path.name}" for folder in folders for path in (root / folder).glob("*")}
    return problems + [Problem(name, "added: the statement does not have it") for name in sorted(here - set(wanted))]


def compare(root: Path, name: str, digest: str) -> Problem | None:
    """What is wrong with one file, or None."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return Problem(name, "a path that leaves the workspace")
    if not (root / name).is_file():
        return Problem(name, "missing")
    if sha256_file(root / name) != digest:
        return Problem(name, "changed: its sha256 is not that of the statement")
    return None
