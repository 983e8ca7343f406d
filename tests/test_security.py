"""What the code may not do, read from the code itself: unpickle, run shells, evaluate text, listen to the world."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for folder in ("pipeline", "stages", "benchmarks") for p in (ROOT / folder).rglob("*.py"))
UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """(last two parts of the called name, the call)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ".".join(ast.unparse(node.func).split(".")[-2:]), node


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


def breaches(text: str) -> list[str]:
    """What a module does that it may not, one line each."""
    tree, found = ast.parse(text), []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [f"imports {name}" for name in names if name.split(".")[0] in UNPICKLING | {"yaml"}]
        if isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::"):
            found.append("names an address of every device")
    for name, call in calls(tree):
        if name == "torch.load" and keyword(call, "weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and keyword(call, "allow_pickle") not in (None, "False"):
            found.append("np.load with allow_pickle")
        if name.endswith("YAML") and keyword(call, "typ") not in (None, "'safe'", "'rt'"):
            found.append("YAML that is not safe")
        if name in ("eval", "exec", "os.system", "os.popen"):
            found.append(f"calls {name}")
        if keyword(call, "shell") not in (None, "False"):
            found.append("runs a shell")
        if keyword(call, "trust_remote_code") not in (None, "False"):
            found.append("runs code that comes with a model")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_module_does_what_it_may_not(file: Path) -> None:
    assert breaches(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from joblib import load", "import yaml", "torch.load(f)", "torch.load(f, weights_only=False)",
     "np.load(f, allow_pickle=True)", "YAML(typ='unsafe')", "eval(x)",
     "subprocess.run(c, shell=True)", "serve('0.0.0.0')",
     "AutoModel.from_pretrained(x, trust_remote_code=True)"],
)  # fmt: skip
def test_a_breach_is_found(text: str) -> None:
    assert len(breaches(text)) == 1


def test_the_deployments_bind_nothing_and_hold_no_secret() -> None:
    for name in ("prefect.yaml", "Makefile", "dvc.yaml", "params.yaml", ".dvc/config"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "0.0.0.0" not in text
        assert not re.search(r"(?i)(password|secret|token|access_key)\s*[:=]\s*\S", text), name
