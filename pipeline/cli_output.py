"""How commands answer: JSON, or a table without a frame."""

from __future__ import annotations

import json
import sys
from typing import Any

from pipeline.errors import printable


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False, default=str))


def records(columns: list[str], rows: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Rows as JSON objects; NaN and infinities, which JSON does not have, as their names."""
    return [{c: finite(v) for c, v in zip(columns, row, strict=True)} for row in rows]


def finite(value: Any) -> Any:
    return repr(value) if isinstance(value, float) and (value != value or abs(value) == float("inf")) else value


def print_table(columns: list[str], rows: list[tuple[Any, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        numbers = all(isinstance(row[i], int | float | None) for row in rows)
        table.add_column(Text(printable(name)), justify="right" if numbers and rows else "left", overflow="fold")
    for row in rows:
        table.add_row(*[Text("" if value is None else printable(str(value))) for value in row])
    Console(highlight=False, soft_wrap=not sys.stdout.isatty()).print(table)
