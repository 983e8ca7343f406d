"""dvc.yaml's DAG as data, and the code that each stage executes.

`dvc.yaml` is the only description of the DAG. This module reads it; it also computes, from the imports alone, which
code files a stage runs, so that dvc.yaml can list exactly those as dependencies:

    python -m pipeline.graph          # say which code dependencies dvc.yaml lacks or lists in vain
    python -m pipeline.graph --write  # and rewrite them
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.errors import DataError, ParamError
from pipeline.files import atomic_path

PACKAGES = ("pipeline", "stages")
_MODULE = re.compile(r"^python -m (?P<module>[a-z_.]+)")


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage as dvc.yaml declares it, templates unresolved.

    Args:
        name: key in dvc.yaml; a matrix counts as one.
        module: the Python module that its command runs.
        deps, outs: paths as written, matrix and parameter templates included.
        params: keys of params.yaml.
    """

    name: str
    module: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    params: tuple[str, ...]

    @property
    def data_deps(self) -> tuple[str, ...]:
        return tuple(d for d in self.deps if not d.endswith(".py"))

    @property
    def code_deps(self) -> tuple[str, ...]:
        return tuple(d for d in self.deps if d.endswith(".py"))


def load_stages(file: str | Path = "dvc.yaml") -> dict[str, Stage]:
    """Stages of dvc.yaml in declared order.

    Raises:
        ParamError: a command is not `python -m MODULE ...`.
    """
    raw = YAML(typ="safe", pure=True).load(Path(file).read_text(encoding="utf-8"))
    stages = {}
    for name, body in raw["stages"].items():
        match = _MODULE.match(body["cmd"])
        if match is None:
            raise ParamError("a stage's command must be `python -m MODULE ...`", file=file, field=name)
        stages[name] = Stage(
            name, match["module"], _paths(body.get("deps")), _paths(body.get("outs")), _paths(body.get("params"))
        )
    return stages


def _paths(items: list[Any] | None) -> tuple[str, ...]:
    return tuple(item if isinstance(item, str) else next(iter(item)) for item in items or [])


def overlap(a: str, b: str) -> bool:
    """Whether one path is the other or stands inside it."""
    return a == b or a.startswith(b + "/") or b.startswith(a + "/")


def code_closure(module: str, root: str | Path = ".") -> tuple[str, ...]:
    """The project's own code files that `python -m module` may execute, by following imports, those in functions too.

    Args:
        module: dotted name; a package stands for its `__main__`.
        root: root of the repository.

    Returns:
        Paths relative to the root, sorted.

    Raises:
        DataError: no such module.
    """
    root = Path(root)
    found: set[Path] = set()
    todo = [_file(f"{module}.__main__", root) or _file(module, root)]
    if todo[0] is None:
        raise DataError(f"no module {module!r}")
    while todo:
        file = todo.pop()
        if file is None or file in found:
            continue
        found.add(file)
        parents = [p / "__init__.py" for p in file.relative_to(root).parents if p != Path()]
        todo.extend(root / p for p in parents if (root / p).is_file())
        todo.extend(_file(name, root) for name in _imports(file))
    return tuple(sorted(f.relative_to(root).as_posix() for f in found))


def _file(module: str, root: Path) -> Path | None:
    if module.split(".")[0] not in PACKAGES:
        return None
    base = root.joinpath(*module.split("."))
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None


def _imports(file: Path) -> list[str]:
    """Dotted names that a file imports, `TYPE_CHECKING` blocks left out. `from a import b` may mean module a.b."""
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    names: list[str] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
            names.extend(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return names


def wrong_code_deps(file: str | Path = "dvc.yaml", root: str | Path = ".") -> list[str]:
    """One line per code dependency that a stage lacks or lists in vain."""
    lines = []
    for stage in load_stages(file).values():
        declared, needed = set(stage.code_deps), set(code_closure(stage.module, root))
        lines += [f"{stage.name}: lacks {path}" for path in sorted(needed - declared)]
        lines += [f"{stage.name}: does not run {path}" for path in sorted(declared - needed)]
    return lines


def write_code_deps(file: str | Path = "dvc.yaml", root: str | Path = ".") -> None:
    """Rewrite the code dependencies of every stage in place; comments and everything else stay."""
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    raw = yaml.load(Path(file).read_text(encoding="utf-8"))
    for name, stage in load_stages(file).items():
        raw["stages"][name]["deps"] = [*stage.data_deps, *code_closure(stage.module, root)]
    with atomic_path(file) as temporary, temporary.open("w", encoding="utf-8") as out:
        yaml.dump(raw, out)


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Compare dvc.yaml's code dependencies with the imports.")
    parser.add_argument("--write", action="store_true", help="rewrite them")
    if parser.parse_args().write:
        write_code_deps()
    lines = wrong_code_deps()
    print("\n".join(lines) or "dvc.yaml lists exactly the code that its stages run")
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
