"""The `certrank` command. Every command has --json; `certrank --debug ...` shows tracebacks.

Exit codes: 0 all is well; 1 an error, or what was checked does not hold (one line each on stderr); 2 wrong usage;
75 a retry may succeed. Modules are imported inside the commands, so that `certrank --help` answers at once.
"""

from __future__ import annotations

import csv
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pipeline import cli_history, cli_runs
from pipeline.cli_output import print_json, print_table, records
from pipeline.errors import CertrankError, ParamError, printable

if TYPE_CHECKING:
    from pipeline.verify import Report

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
    help="Evidence-certified rankings: check them, look at them, ask the tables. `dvc repro` builds them.",
)  # fmt: skip
models = typer.Typer(no_args_is_help=True, help="Fitted models.")
intents = typer.Typer(no_args_is_help=True, help="Plan skeletons.")
app.add_typer(models, name="models")
app.add_typer(intents, name="intents")
app.add_typer(cli_runs.flow, name="flow")
app.command("ui")(cli_runs.ui)
app.command("sign")(cli_runs.sign)
app.command("history")(cli_history.history)
app.command("diff")(cli_history.diff)
app.command("show")(cli_history.show)

Json = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Data = Annotated[Path, typer.Option("--data", help="Data directory.")]
DATA = Path("data")


@app.callback()
def _root(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    if debug:
        os.environ["CERTRANK_DEBUG"] = "1"


def main() -> None:
    """Entry point: run a command; an error is one line on stderr."""
    try:
        app()
    except CertrankError as error:
        if os.environ.get("CERTRANK_DEBUG"):
            raise
        _exit(str(error), error.exit_code)
    except OSError as error:
        if os.environ.get("CERTRANK_DEBUG"):
            raise
        _exit(f"{error.filename or 'disk'}: {os.strerror(error.errno or 0)}", 1)


def _exit(line: str, code: int) -> NoReturn:
    print(f"certrank: error: {printable(line)}", file=sys.stderr)
    raise SystemExit(code)


# ---- certificates ---------------------------------------------------------------------------------------------------


@app.command()
def verify(
    rankings: Annotated[
        Path, typer.Argument(help="data/rank or a folder in it, or a JSONL file of `certrank export`.")
    ] = DATA / "rank",
    corpus: Annotated[
        Path | None, typer.Option(help="documents.parquet, or a JSON-lines corpus; default: data/ingest.")
    ] = None,
    recover: Annotated[
        bool | None, typer.Option(help="Re-run the verifier, too; default: where the trajectories are at hand.")
    ] = None,
    setting: Annotated[
        str | None, typer.Option(help="Roster setting of these rankings; default: the folder's name.")
    ] = None,
    provenance: Annotated[
        bool, typer.Option("--provenance", help="Check what `certrank sign` signed instead.")
    ] = False,
    public_key: Annotated[Path, typer.Option(help="With --provenance: of whoever signed.")] = Path(
        "~/.config/certrank/signing-key.pub"
    ),
    data: Data = DATA,
    as_json: Json = False,
) -> None:
    """Check certificates against the documents; exits with 1 when one that claims to be certified does not hold."""
    if provenance:
        cli_runs.verify_provenance(rankings, public_key, as_json)
    from pipeline.certificates import Limits
    from pipeline.lists import find_lists, load_corpus, read_lists
    from pipeline.params import load_params
    from pipeline.tables import SETTINGS
    from pipeline.verify import Trajectories
    from pipeline.verify import verify as check

    if setting is not None and setting not in SETTINGS:
        raise ParamError(f"no roster setting {setting!r}", field="--setting", mend=f"one of {', '.join(SETTINGS)}")
    limits = load_params().verifier if Path("params.yaml").is_file() else None
    documents = load_corpus(corpus or data / "ingest")
    reports = {}
    for path in find_lists(rankings):
        name = setting or path.resolve().name
        at_hand = limits is not None and name in SETTINGS and Trajectories.present(name, data)
        if recover and not at_hand:
            mend = "give --setting and --data, run from the root of the repository, or `dvc repro trajectories`"
            raise ParamError(f"no trajectories at hand for {path}", field="--recover", mend=mend)
        trajectories = None
        if limits is not None and at_hand and recover is not False:
            trajectories = Trajectories(name, limits, data)
        bounds = Limits.of(limits) if limits is not None else Limits()
        reports[str(path)] = check(read_lists(path), documents, bounds, trajectories)
    passed = all(report.passed for report in reports.values())
    if as_json:
        each = [{"rankings": path, "passed": r.passed, **asdict(r)} for path, r in reports.items()]
        print_json({"passed": passed, "limits": "params.yaml" if limits else "default", "reports": each})
    else:
        for shown, report in reports.items():
            _print_report(shown, report)
        if limits is None:
            print("limits are the default ones: there is no params.yaml here")
        failed = sum(len(report.failures) for report in reports.values())
        print("every certificate holds" if passed else f"{failed} do not hold")
    raise typer.Exit(0 if passed else 1)


def _print_report(path: str, report: Report) -> None:
    for failure in report.failures:
        print(printable(failure.line()))
    print(f"{printable(path)}: {report.lists} lists, {report.entries} entries, {report.certified} of them certified")
    for reason, count in sorted(report.uncertified.items()):
        print(f"  {count} uncertified by their own system: {printable(reason)}")
    if report.recovered is None:
        print("  checked against the documents; the verifier was not re-run")
    else:
        print(f"  checked against the documents; the verifier was re-run on {report.recovered} entries")
    if report.skipped:
        print(f"  {report.skipped} lists are of a window or intent that the trajectories do not have")


@app.command()
def export(
    rankings: Annotated[Path, typer.Argument(help="data/rank/SYSTEM/SETTING.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; default: standard output.")] = None,
    uncertified: Annotated[bool, typer.Option(help="Keep entries that are not certified.")] = False,
    corpus: Annotated[Path | None, typer.Option(help="As for verify.")] = None,
    data: Data = DATA,
    as_json: Json = False,
) -> None:
    """Write rankings in the interchange form: one JSON object per list, with quoted spans and document hashes."""
    from pipeline.files import atomic_path
    from pipeline.lists import export as lines
    from pipeline.lists import load_corpus, read_lists

    del as_json  # it is JSON either way
    found = lines(read_lists(rankings), load_corpus(corpus or data / "ingest"), uncertified)
    if out is None:
        for line in found:
            print(line)
        return
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        count = sum(1 for line in found if file.write(line + "\n"))
    print(f"{count} lists in {out}", file=sys.stderr)


@app.command()
def inspect(
    window: Annotated[str, typer.Argument(help="Window id.")],
    system: Annotated[str | None, typer.Option(help="Ranking system; default: the first of rank.systems.")] = None,
    setting: Annotated[str | None, typer.Option(help="Roster setting; default: the first with a candidate.")] = None,
    intent: Annotated[str | None, typer.Option(help="Intent id; default: all.")] = None,
    brief: Annotated[bool, typer.Option("--brief", help="Of the texts, only the sentences with evidence.")] = False,
    data: Data = DATA,
    as_json: Json = False,
) -> None:
    """Show a window, its ranking and the cited evidence."""
    from rich.console import Console

    from pipeline.inspect import default_setting, inspect, show
    from pipeline.params import load_params

    params = load_params()
    setting = setting or default_setting(window, params.roster.settings, data)
    found = inspect(window, system or params.rank.systems[0], setting, intent, data)
    if as_json:
        print_json([inspection.as_json() for inspection in found])
    else:
        show(found, Console(highlight=False), brief)


@app.command()
def extract(
    texts: Annotated[list[Path], typer.Argument(help="Text files (UTF-8), JSON-lines corpora, or folders of both.")],
    intents: Annotated[Path, typer.Option(help="Intent file, or a folder of them: what to rank by.")],
    model: Annotated[
        str | None, typer.Option(help="Extractor kept under models/fitted/; default: the only one.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="Kept reward model, or none to rank nothing; default: the extractor's own.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New folder that keeps tables, texts and parameters.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Most entries of a ranking; never more than half of the candidates.")
    ] = None,
    window_per_file: Annotated[
        bool, typer.Option("--window-per-file", help="Rank each file on its own; by default all are one window.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an earlier result in --out.")] = False,
    as_json: Json = False,
) -> None:
    """Read plain text with kept models: who is in there, what they did, and a certified ranking with its evidence."""
    from rich.console import Console

    from pipeline.extract_text import Request, extraction, too_few
    from pipeline.extracted import show

    request = Request(tuple(texts), intents, model, reward, out, top, window_per_file, replace)
    with extraction(request) as done:
        for note in done.notes:
            print(f"certrank: note: {printable(note)}", file=sys.stderr)
        least, sizes = done.params.roster.min_candidates, done.sizes()
        if as_json:
            place = None if out is None else str(out)
            found = [window.as_json() for window in done.windows()]
            print_json({"model": done.model, "reward": done.reward, "out": place, "windows": found})
        else:
            console = Console(highlight=False)
            for window in done.windows():
                show(window, least, console)
                console.print()
            if done.reward is None:
                print("no reward model: nothing is ranked")
            if out is not None:
                print(f"kept in {printable(str(out))}; certrank inspect, verify and sql work there")
        if done.reward is not None and max(sizes) < least:
            raise too_few(sizes, least)


# ---- tables ---------------------------------------------------------------------------------------------------------


@app.command()
def catalog(data: Data = DATA, as_json: Json = False) -> None:
    """Build or refresh data/catalog.duckdb: read-only views over all tables, with their DVC versions."""
    from pipeline.catalog import build, query

    path = build(data)
    sql = "select view, count(*) as files, sum(rows) as rows, sum(size) as bytes from versions group by view order by 1"
    answer = query(sql, data)
    if as_json:
        print_json({"catalog": str(path), "views": records(answer.columns, answer.rows)})
        return
    print_table(answer.columns, answer.rows)
    print(f"{path}; ask it with `certrank sql`, columns are explained in `certrank sql 'from columns'`")


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="One SELECT, e.g. 'select * from rank.rankings limit 5'.")],
    as_csv: Annotated[bool, typer.Option("--csv", help="Answer in CSV.")] = False,
    rows: Annotated[int, typer.Option(min=0, help="Most rows of a printed table; 0 = all.")] = 50,
    at: Annotated[str | None, typer.Option(help="Ask the tables as of a git revision or a DVC experiment.")] = None,
    data: Data = DATA,
    as_json: Json = False,
) -> None:
    """Ask the catalog; it is refreshed first when dvc.lock or a table changed. Nothing can be written through it."""
    from pipeline import history
    from pipeline.catalog import query as ask

    answer = ask(query, data) if at is None else history.query(query, at)
    if as_json:
        print_json(records(answer.columns, answer.rows))
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(answer.columns)
        writer.writerows(answer.rows)
    else:
        shown = answer.rows if rows == 0 else answer.rows[:rows]
        print_table(answer.columns, shown)
        if len(shown) < len(answer.rows):
            print(f"{len(answer.rows) - len(shown)} more rows: --rows 0 shows all", file=sys.stderr)


# ---- the rest -------------------------------------------------------------------------------------------------------


@app.command()
def doctor(data: Data = DATA, as_json: Json = False) -> None:
    """Check environment, data and DVC state; say what is wrong and how to mend it. Exits with 1 on a failure."""
    from rich.console import Console
    from rich.text import Text

    from pipeline.doctor import examine

    findings = examine(data)
    failed = any(finding.level == "fail" for finding in findings)
    if as_json:
        print_json({"passed": not failed, "findings": [asdict(finding) for finding in findings]})
    else:
        console = Console(highlight=False, soft_wrap=True)
        for finding in findings:
            mark, colour = {"ok": (" ok ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}[finding.level]
            line = Text.assemble((mark, colour), "  ", (f"{finding.check:<10}", "bold"), printable(finding.what))
            console.print(line)
            if finding.level != "ok" and finding.mend:
                console.print(Text(f"{'':16}{finding.mend}", "dim"))
    raise typer.Exit(1 if failed else 0)


@app.command()
def summary(data: Data = DATA, as_json: Json = False) -> None:
    """The headline numbers of the last run, and where everything is."""
    from pipeline.files import read_json
    from pipeline.summary import print_summary

    if as_json:
        print_json(read_json(data / "audit" / "metrics.json"))
    else:
        print_summary(data)


@models.command("keep")
def keep(
    name: Annotated[str, typer.Argument(help="Name for extract.from and reward.from.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace what is kept under this name.")] = False,
    as_json: Json = False,
) -> None:
    """Keep the fitted models under models/fitted/NAME/, for use on another corpus."""
    from pipeline.fitted import keep

    kept = keep(name, replace=replace)
    if as_json:
        print_json({"name": name, "kept": [str(path) for path in kept]})
    else:
        print(f"kept {', '.join(map(str, kept))}; use with extract.from: {name}, reward.from: {name}")


@intents.command("mine", add_help_option=False, context_settings={
    "ignore_unknown_options": True, "allow_extra_args": True,
})  # fmt: skip
def mine(context: typer.Context) -> None:
    """Propose plan skeletons from the annotated train split; a person then reads, edits and freezes them."""
    from stages.trajectories.mine import app as mining

    mining(["mine", *context.args], prog_name="certrank intents")


if __name__ == "__main__":
    main()
