"""`certrank extract my.txt --intents ...`: plain text that carries no annotation, read with kept models, then ranked.

The stages do the work, each as a process of its own in a private workspace that looks like the root of the repository:

    corpus/*.jsonl       the texts, one file per input, lines in the same order (`pipeline.plain_text`)
    intents/jsonl/       the intents
    params.yaml          the repository's, with ingest.source jsonl, the kept models, and the predicted roster alone
    data/                what ingest, extract, roster, trajectories, reward and rank write (`pipeline.extracted`)
    extract.json         which models read which files

Without a place to keep it the workspace is a temporary directory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ruamel.yaml import YAML

from pipeline import files, tables
from pipeline.errors import CertrankError, DataError, ParamError, TransientError
from pipeline.extracted import SETTING, SYSTEM, Extraction
from pipeline.fitted import MODELS
from pipeline.params import Params, load_params, parse_params
from pipeline.plain_text import find_inputs, write_corpus
from pipeline.skeletons import Intent, load_intents

FITTED = Path("models/fitted")
ROOT = Path(__file__).resolve().parents[1]
RECORD = "extract.json"
READ_BY = "folds/read_by.json"
"""Within an extractor: the texts that it was fitted on, by their sha256 (stages/extract/models.py)."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to do.

    Args:
        inputs: text files, JSON-lines corpora (docs/corpus.md), folders of both.
        intents: an intent file, or a folder of them.
        model: name under models/fitted/; None = the only one that is kept.
        reward: name of a kept reward model, "none" to rank nothing; None = the one kept with the extractor, if any.
        out: directory that receives the workspace; None = a temporary one.
        top: greatest length of a ranking; None = roster.max_k of params.yaml.
        window_per_file: whether each file is a window of its own; else all of them are one.
        replace: whether an earlier result at `out` may be replaced.
    """

    inputs: tuple[Path, ...]
    intents: Path
    model: str | None = None
    reward: str | None = None
    out: Path | None = None
    top: int | None = None
    window_per_file: bool = False
    replace: bool = False


@contextmanager
def extraction(request: Request) -> Iterator[Extraction]:
    """Run the stages and hand over the result; without `request.out` it is gone when the `with` ends.

    Raises:
        DataError: a file that is missing, not UTF-8 or empty; whatever a stage refuses.
        ParamError: no such kept model, intents that the model cannot serve, a place that is taken.
        TransientError: a stage may succeed when it is run again.
    """
    params = load_params()
    model, reward = choose_models(request.model, request.reward)
    inputs = find_inputs(request.inputs)
    if request.out is None:
        with TemporaryDirectory(prefix="certrank-") as folder:
            yield run(request, inputs, params, model, reward, Path(folder))
        return
    out = free_place(request.out, request.replace)
    with files.publish_directory(out) as folder:
        done = run(request, inputs, params, model, reward, folder)
    done.workspace = out
    yield done


def free_place(out: Path, replace: bool) -> Path:
    """The directory itself, once nothing but an earlier result can be lost there.

    Raises:
        ParamError: it is taken.
    """
    out = out.resolve()
    if out.is_dir() and any(out.iterdir()):
        ours = (out / RECORD).is_file() and (out / files.COMPLETE).is_file()
        if not ours:
            raise ParamError("this folder is not empty, and not a result of this command", file=out, field="--out")
        if not replace:
            raise ParamError("a result stands here already", file=out, field="--out", mend="add --replace")
    elif out.exists() and not out.is_dir():
        raise ParamError("a file, not a folder", file=out, field="--out")
    return out


# ---- models ---------------------------------------------------------------------------------------------------------


def choose_models(model: str | None, reward: str | None) -> tuple[str, str | None]:
    """Names of the kept extractor and reward model.

    Raises:
        ParamError: none of that name, or no name and not exactly one kept.
        DataError: the model is incomplete or was changed.
    """
    extractors, rewards = (kept(kind) for kind in MODELS)
    if not extractors:
        mend = "`dvc repro` fits them, then `certrank models keep NAME` keeps them"
        raise ParamError("no model is kept", file=FITTED, field="--model", mend=mend)
    if model is None and len(extractors) > 1:
        raise ParamError(f"several are kept: {', '.join(extractors)}", file=FITTED, field="--model", mend="name one")
    name = extractors[0] if model is None else model
    _check_kept(name, "extract", extractors, "--model")
    if reward == "none" or (reward is None and name not in rewards):
        return name, None
    _check_kept(reward or name, "reward", rewards, "--reward")
    return name, reward or name


def kept(kind: str) -> list[str]:
    """Names under which a model of this kind is kept."""
    return sorted(folder.parent.name for folder in FITTED.glob(f"*/{kind}") if folder.is_dir())


def _check_kept(name: str, kind: str, names: Sequence[str], option: str) -> None:
    if name not in names:
        known = f"kept are {', '.join(names)}" if names else "none is kept"
        mend = f"{known}; `certrank models keep NAME` keeps what `dvc repro` fitted"
        what = f"no {'extractor' if kind == 'extract' else 'reward model'} is kept as {name!r:.60}"
        raise ParamError(what, file=FITTED, field=option, mend=mend)
    files.check_complete(FITTED / name / kind)


def known_types(name: str) -> list[str]:
    """The event types that a kept extractor finds.

    Raises:
        DataError: its configuration names none.
    """
    file = FITTED / name / "extract" / "config.json"
    config = files.read_json(file)
    # The linear extractor's and the encoder's; read here, because loading an encoder takes seconds.
    for part, key in (("trigger_type", "labels"), ("labels", "kinds")):
        found = config.get(part) if isinstance(config, dict) else None
        if isinstance(found, dict) and isinstance(found.get(key), list):
            return [str(label) for label in found[key]]
    raise DataError("the model names no event types", file=file, mend="keep it again")


# ---- intents --------------------------------------------------------------------------------------------------------


def take_intents(source: Path, folder: Path) -> list[Intent]:
    """Copy an intent file, or the intents of a folder, and read them.

    Raises:
        ParamError: nothing there, or a broken intent.
    """
    if source.is_dir():
        found = sorted(source.glob("*.yaml"))
    elif source.is_file():
        found = [source]
    else:
        raise ParamError("no such file or folder", file=source, field="--intents")
    folder.mkdir(parents=True)
    origin = {folder: source}
    for file in found:
        copy = folder / (file.name if file.suffix == ".yaml" else f"{file.name}.yaml")
        shutil.copyfile(file, copy)
        origin[copy] = file
    try:
        return load_intents(folder)
    except ParamError as error:
        file = origin.get(Path(str(error.file)), source)
        raise ParamError(error.what, file=file, line=error.line, field=error.field, mend=error.mend) from None


def check_intents(intents: Sequence[Intent], types: Sequence[str], model: str, source: Path) -> list[str]:
    """A line for each intent that the model cannot serve.

    Raises:
        ParamError: it can serve none.
    """
    unserved = [
        intent.intent_id for intent in intents
        if not any(slot.fits_type(name) for slot in intent.skeleton.slots for name in types)
    ]  # fmt: skip
    if len(unserved) == len(intents):
        raise ParamError(
            f"no event type of these intents is known to the model {model}", file=source, field="--intents",
            mend=f"it finds {', '.join(types[:5])}{f' and {len(types) - 5} more' if len(types) > 5 else ''}",
        )  # fmt: skip
    return [f"intent {name} names no event type that the model {model} finds" for name in unserved]


# ---- the stages -----------------------------------------------------------------------------------------------------


def run(
    request: Request, inputs: Sequence[Path], params: Params, model: str, reward: str | None, workspace: Path
) -> Extraction:
    """Fill the workspace and run the stages in it."""
    intents = take_intents(request.intents, workspace / "intents" / "jsonl")
    notes = check_intents(intents, known_types(model), model, request.intents)
    window = None if request.window_per_file else _window_name(request.inputs)
    corpus = write_corpus(inputs, workspace / "corpus", window)
    notes += [f"{name}: its annotation and splits are not read" for name in corpus.annotated]
    own = derive(params, model, reward, request.top)
    with (workspace / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(own.model_dump(by_alias=True), file)
    run_stage("ingest", workspace, corpus.origin)
    link_extractor(model, workspace)
    if reward is not None:
        _link(Path(reward) / "reward", workspace)
    stages = ["extract", "roster", "trajectories"]
    for stage in stages if reward is None else [*stages, "reward", f"rank {SYSTEM} {SETTING}"]:
        run_stage(stage, workspace, corpus.origin)
    shutil.rmtree(workspace / "models")  # links, and copies of what is kept in the repository
    shutil.rmtree(workspace / files.WORK)
    record = {"model": model, "reward": reward, "intents": str(request.intents), "documents": corpus.file_of}
    files.write_json(workspace / RECORD, record)
    return Extraction(workspace, own, intents, model, reward, notes, corpus.file_of)


def link_extractor(name: str, workspace: Path) -> None:
    """Put the kept extractor into a workspace whose texts are ingested.

    The models of its folds read nothing but texts that it was fitted on (stages/extract/folds.py). Where there is none
    of these, they stay away: every stage that reads texts would load three models to use one.
    """
    kept = FITTED / name / "extract"
    fitted_on = files.read_json(kept / READ_BY) if (kept / READ_BY).is_file() else {}
    texts = tables.Reader("ingest/documents", workspace / "data").batches(columns=["sha256"])
    if not isinstance(fitted_on, dict) or any(digest in fitted_on for batch in texts for digest in batch["sha256"]):
        # A map that is broken is for the stage to refuse.
        _link(Path(name) / "extract", workspace)
        return
    with files.publish_directory(workspace / kept) as folder:
        for file in kept.iterdir():
            if file.is_file() and file.name != files.COMPLETE:
                (folder / file.name).symlink_to(file.resolve())


def _link(model: Path, workspace: Path) -> None:
    link = workspace / FITTED / model
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to((FITTED / model).resolve(), target_is_directory=True)


def _window_name(inputs: Sequence[Path]) -> str:
    """Named after the input where there is but one."""
    only = inputs[0].resolve()
    return (only.stem if only.is_file() else only.name) or "texts" if len(inputs) == 1 else "texts"


def derive(params: Params, model: str, reward: str | None, top: int | None) -> Params:
    """The repository's parameters for reading the workspace's corpus with kept models."""
    raw = params.model_dump(by_alias=True)
    raw["ingest"].update(source="jsonl", path="corpus", on_error="fail", splits="")
    raw["extract"]["from"] = model
    raw["roster"].update(settings=[SETTING], candidate_kind="auto", max_k=top or params.roster.max_k)
    raw["trajectories"]["negatives"] = False
    raw["reward"].update({"from": reward or "", "setting": SETTING})
    raw["rank"].update(systems=[SYSTEM], splits=["test"])
    raw["rank_policy"].update(systems=[])
    return parse_params(raw)


def run_stage(stage: str, workspace: Path, origin: Mapping[str, str]) -> None:
    """Run one stage in the workspace.

    Args:
        stage: its name, and arguments.
        workspace: the working directory.
        origin: corpus file -> the file it was made of, for messages.

    Raises:
        CertrankError: what the stage said, in its line.
    """
    name, *arguments = stage.split(" ")
    if sys.stderr.isatty():
        print(f"  {name} ...", file=sys.stderr)
    debug = bool(os.environ.get("CERTRANK_DEBUG"))
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{name}", *arguments], cwd=workspace, env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        errors="replace", check=False,
    )  # fmt: skip
    if debug:
        print(done.stderr, end="", file=sys.stderr)
    if done.returncode == 0:
        return
    said = [line.partition(": error: ")[2] for line in done.stderr.splitlines() if ": error: " in line]
    what = said[-1] if said else f"ended with status {done.returncode} and without a word; is there enough memory?"
    for file, source in origin.items():
        what = what.replace(file, source)
    failed = TransientError if done.returncode == TransientError.exit_code else DataError
    raise failed(what if said else f"stage {name}: {what}")


def too_few(sizes: Sequence[int], least: int) -> CertrankError:
    """Why no window was ranked."""
    where = "" if len(sizes) == 1 else f" in the largest of {len(sizes)} windows"
    return DataError(
        f"{max(sizes)} candidate{'s'[: max(sizes) != 1]} found{where}, and a ranking needs {least}",
        field="roster.min_candidates", mend="give more text about the affair, or lower it in params.yaml",
    )  # fmt: skip
