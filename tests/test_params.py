"""params.yaml: every mistake is one line with file, line or field; DVC reads the same values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline.errors import ParamError
from pipeline.params import Params, load_params, parse_params

ROOT = Path(__file__).parent.parent
FILE = ROOT / "params.yaml"


def raw() -> dict[str, Any]:
    return load_params(FILE).model_dump(by_alias=True)


def leaves(model: BaseModel, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in type(model).model_fields.items():
        value, key = getattr(model, name), (*prefix, field.alias or name)
        if isinstance(value, BaseModel):
            yield from leaves(value, key)
        else:
            yield key


LEAVES = list(leaves(load_params(FILE)))


def put(tree: dict[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    node = tree
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    return tree


def test_the_repositorys_params_are_valid() -> None:
    params = load_params(FILE)
    assert params.ingest.source == "sample"
    assert parse_params(raw()) == params


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
def test_every_key_is_needed_and_typed(path: tuple[str, ...]) -> None:
    tree = raw()
    node = tree
    for part in path[:-1]:
        node = node[part]
    del node[path[-1]]
    with pytest.raises(ParamError, match=rf"params\.yaml: {'.'.join(path)}: missing key$"):
        parse_params(tree)
    with pytest.raises(ParamError, match=".".join(path)):
        parse_params(put(raw(), path, {"not": "a value"}))
    with pytest.raises(ParamError, match=".".join(path)):
        parse_params(put(raw(), path, None))


@pytest.mark.parametrize("path", [("seeds",), ("ingest", "sources"), ("ingest", "sample", "x")])
def test_an_unknown_key_is_an_error(path: tuple[str, ...]) -> None:
    with pytest.raises(ParamError, match=rf"{'.'.join(path)}: unknown key \(got 1\)"):
        parse_params(put(raw(), path, 1))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("seed",), True), (("seed",), "1"), (("seed",), 1.0), (("ingest", "source"), "Sample"),
        (("roster", "settings"), []), (("roster", "settings"), ["open"]), (("roster", "max_k"), 0),
        (("extract", "lattice"), 0), (("extract", "lattice"), 1.5), (("extract", "lattice"), float("nan")),
        (("reward", "l2"), -1.0), (("reward", "l2"), float("inf")), (("reward", "l2"), float("nan")),
        (("reward", "l2"), True), (("verifier", "accept"), float("nan")), (("trajectories", "buckets"), [0.2, 0.5]),
        (("trajectories", "buckets"), [0.5]), (("trajectories", "negatives"), 1), (("audit", "bootstrap"), 999),
        (("rank", "systems"), "rm_attach"), (("rank", "systems"), ["rm_attach", "rm_attach"]),
        (("roster", "settings"), ["closed", "closed"]),
    ],
)  # fmt: skip
def test_wrong_values_name_their_field(path: tuple[str, ...], value: object) -> None:
    with pytest.raises(ParamError, match=rf"^params\.yaml: {'.'.join(path)}"):
        parse_params(put(raw(), path, value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping of sections"),
        ("- 1\n", "expected a mapping of sections"),
        ("seed: 1\nseed: 2\n", r"params\.yaml:2: not valid YAML: found duplicate key"),
        ("seed: [1\n", r"params\.yaml:\d: not valid YAML"),
        ("a: b: c\n", r"params\.yaml:1: not valid YAML"),
        ("seed: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("seed: \x07\n", "not valid YAML"),
    ],
)
def test_broken_files_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(ParamError, match=message) as caught:
        load_params(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(ParamError, match=r"params\.yaml: file not found; run from the root of the repository"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"seed: \xff\n")
    with pytest.raises(ParamError, match="not valid YAML"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(ParamError, match="not a file"):
        load_params(tmp_path)


def test_a_hostile_value_stays_on_one_line() -> None:
    with pytest.raises(ParamError) as caught:
        parse_params(put(raw(), ("ingest", "source"), "\x1b[2J\n" * 1000))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_params_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_params(FILE).seed = 3


YAML_12 = """\
a: on
b: off
c: yes
d: 1e-8
e: 1.0e-8
f: 0o17
g: 017
h: 1_000
i: 0x1F
j: ~
k: "1e-8"
l: 12:30:45
m: 2021-03-04
n: .inf
o: -.5
p: 1.
q: null
r: True
s: {<<: {x: 1}, y: 2}
"""


def test_dvc_reads_the_same_values(tmp_path: Path) -> None:
    """DVC hashes what its own parser reads; if ours differed, a changed meaning could leave a stage unchanged."""
    from dvc.utils.serialize import parse_yaml
    from ruamel.yaml import YAML

    ours = YAML(typ="safe", pure=True).load(YAML_12)
    theirs = parse_yaml(YAML_12, "params.yaml")
    assert ours == theirs
    assert {k: type(v) for k, v in ours.items()} == {k: type(v) for k, v in theirs.items()}
    assert (ours["a"], ours["d"], ours["l"]) == ("on", 1e-8, "12:30:45")
    text = FILE.read_text(encoding="utf-8")
    assert Params.model_validate(parse_yaml(text, FILE)) == load_params(FILE)
