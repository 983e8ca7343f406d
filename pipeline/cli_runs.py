"""`certrank flow`, `certrank ui`: the pipeline as a flow of Prefect; `certrank sign`: what it published, signed."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pipeline.errors import DataError, ParamError, TransientError, printable
from pipeline.files import WORK

flow = typer.Typer(no_args_is_help=True, help="The pipeline as a flow of Prefect.")

HOME = WORK / "prefect"
"""Prefect's own files; a server of `certrank ui` and the temporary one of `certrank flow run` each have a folder."""

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
}


def prefect_environment(home: Path) -> dict[str, str]:
    """The environment in which Prefect reports nothing to anybody and keeps its files in this workspace."""
    home.mkdir(parents=True, exist_ok=True)  # Prefect would not
    return {**os.environ, **QUIET, "PREFECT_HOME": str(home.resolve())}


@flow.command("run")
def run(
    targets: Annotated[list[str] | None, typer.Argument(help="Stages, with all upstream; default: all.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", "-S", help="PARAM=VALUE for this run alone, recorded as experiment.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Build the targets as a flow, on a temporary server (or on that of PREFECT_API_URL)."""
    if not Path("dvc.yaml").is_file():
        raise DataError("no dvc.yaml here", mend="run from the root of the repository")
    values = dict(_assignment(item) for item in override or ())
    os.environ.update(prefect_environment(HOME / "once"))
    from pipeline.flow import certrank

    try:
        states: dict[str, str] = certrank(targets or [], values)
    except RuntimeError as error:
        if "ephemeral" not in str(error):
            raise
        raise TransientError("Prefect's temporary server did not start in time", file=HOME / "once") from None
    if as_json:
        print(json.dumps({"stages": states}, indent=2))
        return
    ran = [name for name, final in states.items() if final == "Ran"]
    print(f"{len(states)} stages: {len(ran)} run, {len(states) - len(ran)} cached")


def _assignment(text: str) -> tuple[str, Any]:
    """PARAM=VALUE; the value is YAML as in params.yaml."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    name, sign, value = text.partition("=")
    try:
        return name if sign else "", YAML(typ="safe", pure=True).load(value)
    except YAMLError:
        raise ParamError(f"not a value: {value!r}", field=name, mend="-S PARAM=VALUE") from None


def ui(
    port: Annotated[int, typer.Option(min=1024, max=65534, help="Of the server; the pages have the next one.")] = 4200,
) -> None:
    """Start Prefect's server on 127.0.0.1, deploy prefect.yaml, and work off its runs until interrupted."""
    from pipeline.ui import serve

    serve(port, HOME / "server")


def sign(
    rankings: Annotated[Path, typer.Argument(help="data/rank or a folder in it.")] = Path("data/rank"),
    key: Annotated[Path, typer.Option(envvar="CERTRANK_SIGNING_KEY", help="ed25519 private key, PEM.")] = Path(
        "~/.config/certrank/signing-key.pem"
    ),
    new_key: Annotated[bool, typer.Option("--new-key", help="Make the key first.")] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Sign although tracked files differ from the commit; it says which.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Sign the provenance of rankings: data/provenance/STAGE.intoto.json, for `certrank verify --provenance`."""
    from pipeline import provenance

    if new_key:
        print(f"public key: {provenance.new_key(key)}; give it to whoever verifies", file=sys.stderr)
    written = provenance.sign(rankings, key, allow_changes)
    if as_json:
        print(json.dumps({"signed": [str(path) for path in written]}, indent=2))
    else:
        print("\n".join(map(str, written)))


def verify_provenance(rankings: Path, key: Path, as_json: bool) -> NoReturn:
    """Check the signed provenance of rankings; exits with 1 and names every file that differs."""
    from pipeline import provenance, workspace

    public = provenance.public_key(key)
    problems: dict[str, list[provenance.Problem]] = {}
    for step, _ in provenance.published(workspace.plan(), rankings):
        file = provenance.FOLDER / f"{step.name}{provenance.SUFFIX}"
        problems[str(file)] = provenance.verify(file, public)
    passed = not any(problems.values())
    if as_json:
        each = {file: [asdict(problem) for problem in found] for file, found in problems.items()}
        print(json.dumps({"passed": passed, "statements": each}, indent=2))
    else:
        for problem in sorted({(p.file, p.what) for found in problems.values() for p in found}):
            print(printable(": ".join(problem)))
        print(f"{sum(not found for found in problems.values())} of {len(problems)} statements hold")
    raise typer.Exit(0 if passed else 1)
