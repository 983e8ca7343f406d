"""What must hold of a stage's tables: the format of `stages/<stage>/expectations.yaml`.

    tables:
      ingest/gold/<split>/mentions:             # declared name; every concrete table of it is checked
        columns:                                # Great Expectations, by their own names, on pandas frames
          start: {expect_column_values_to_be_between: {min_value: 0}}
        rows:                                   # the same, over several columns
          - expect_column_pair_values_a_to_be_greater_than_b: {column_A: end, column_B: start}
        unique:                                 # further keys, beside the table's declared one; DuckDB
          - [doc_id, start, end]
        references:                             # these columns occur together in that table; nulls are passed over
          - {columns: [window_id, doc_id], of: ingest/documents}
        rules:                                  # SQL over `pipeline.views`; every row it returns is a failure
          "surface is text[start:end]": select m.* from gold.mentions m join ...
    artifacts:
      models/reward:                            # a file, or a directory with its completeness marker
        rules:                                  # SQL in which {} stands for the quoted path
          "weights are named": select ... from read_json({} || '/config.json') ...

Three expectations need no line, they follow from `pipeline.tables`: no null in a column that may not be null (the
file's own schema excludes it), no NaN either, and the declared key is unique. Tables are streamed, so only row-level
expectations of Great Expectations make sense; one over a whole column (a mean, uniqueness) is refused: write it as a
rule. A rule whose name ends with `(warning)` is reported and does not fail the gate. `define:` may hold YAML anchors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import tables, views
from pipeline.errors import ParamError, TableError

Kwargs = dict[str, Any]
Columns = Annotated[list[str], Field(min_length=1)]
WARNING = "(warning)"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Reference(_Strict):
    """`columns` of this table occur together, under the same names unless `as` says otherwise, in table `of`."""

    columns: Columns
    of: str
    as_: Annotated[list[str], Field(alias="as")] = []

    @property
    def targets(self) -> list[str]:
        return self.as_ or self.columns

    @model_validator(mode="after")
    def _paired(self) -> Reference:
        if len(self.targets) != len(self.columns):
            raise ValueError("`as` must name as many columns as `columns`")
        return self


class TableExpectations(_Strict):
    """What must hold of one declared table."""

    columns: dict[str, dict[str, Kwargs]] = {}
    rows: list[dict[str, Kwargs]] = []
    unique: list[Columns] = []
    references: list[Reference] = []
    rules: dict[str, str] = {}


class ArtifactExpectations(_Strict):
    """What must hold of a model or another file that is no table."""

    rules: dict[str, str] = {}


class Expectations(_Strict):
    """The whole file: by declared table, and by path relative to the root of the repository."""

    define: Any = None
    tables: dict[str, TableExpectations] = {}
    artifacts: dict[str, ArtifactExpectations] = {}

    @property
    def tables_read(self) -> list[str]:
        """Every declared table that checking opens: its own first, then those of other stages."""
        others: set[str] = set()
        for expected in self.tables.values():
            others.update(reference.of for reference in expected.references)
            for sql in expected.rules.values():
                others.update(views.mentioned(sql))
        for artifact in self.artifacts.values():
            for sql in artifact.rules.values():
                others.update(views.mentioned(sql))
        return [*self.tables, *(name for name in tables.TABLES if name in others - set(self.tables))]


def load(stage: str, root: str | Path = "stages") -> Expectations:
    """The expectations of a stage, checked against the declared tables and columns.

    Raises:
        ParamError: no such file, not YAML, an unknown key, table or column, or a table of another stage.
    """
    file = Path(root) / stage / "expectations.yaml"
    try:
        raw = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
        parsed = Expectations.model_validate(raw)
    except FileNotFoundError:
        raise ParamError(f"no expectations are written for stage {stage!r}", file=file) from None
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error)
        raise ParamError(f"not valid YAML: {what}", file=file, line=mark.line + 1 if mark else None) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ParamError(first["msg"], file=file, field=".".join(str(part) for part in first["loc"])) from None
    for name, expected in parsed.tables.items():
        if name not in tables.TABLES or name.split("/")[0] != stage:
            raise ParamError(f"stage {stage} declares no table of this name", file=file, field=name)
        _check_columns(name, expected, file)
    return parsed


def _check_columns(name: str, expected: TableExpectations, file: Path) -> None:
    known = {*tables.TABLES[name].schema, *views.places(name)}
    used = [*expected.columns, *(c for key in expected.unique for c in key)]
    for row in expected.rows:
        for kwargs in row.values():
            used += [c for key in ("column_A", "column_B") if (c := kwargs.get(key))] + kwargs.get("column_list", [])
    for reference in expected.references:
        used += reference.columns
        try:
            other = tables.table(reference.of)
        except TableError as error:
            raise ParamError(error.what, file=file, field=f"{name}.references") from None
        missing = set(reference.targets) - {*other.schema, *views.places(other.name)}
        if other.name != reference.of or missing:
            what = f"{sorted(missing)[0]!r} is no column of it" if missing else "give the declared name"
            raise ParamError(what, file=file, field=f"{name}.references: {reference.of}")
    if unknown := sorted(set(used) - known):
        raise ParamError(f"{unknown[0]!r} is no column of this table", file=file, field=name)
