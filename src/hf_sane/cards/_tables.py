"""Facts as Markdown tables for cards; nested results become a few readable tables instead of a list of dotted names.

Names and values are escaped, since they may be untrusted.
"""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite, isnan
from typing import Any

from hf_sane.records._escaping import Markup, markdown_text

MAX_DIGITS = 1e15  # from which on numbers are shown with an exponent


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> Markup:
    """A Markdown table; `|` inside cells is escaped, and columns of numbers (all but the first) are right-aligned."""
    rule = ["---", *(["---:" if numbers else "---"] * (len(header) - 1))]
    lines = [header, rule, *rows]
    return Markup("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines))


def fact_table(facts: Mapping[str, Any]) -> Markup:
    """Nested facts as a table of dotted names and values; empty without facts."""
    rows = [[_words(name), fact_text(value)] for name, value in _flat(facts) if is_known(value)]
    return markdown_table(["", ""], rows) if rows else Markup()


def result_tables(results: Mapping[str, Any]) -> Markup:
    """Results of a run record as tables.

    Plain values share one table. A mapping of plain values becomes rows of this table under its name. A mapping of
    such mappings becomes a separate table, with the longer side as rows; inner mappings that share no names with the
    others get tables of their own. More deeply nested values and lists of lists are omitted as details.

    Args:
        results: `{name: value}`; names in snake case.

    Returns:
        Markdown; empty without results.
    """
    plain: dict[str, Any] = {}
    tables = []
    for name, value in results.items():
        if not isinstance(value, Mapping):
            plain |= {name: value} if _is_cell(value) else {}
        elif any(isinstance(inner, Mapping) for inner in value.values()):
            columns = _columns(value)
            alone = [key for key in columns if len(columns) > 1 and _shares_no_name(key, columns)]
            if table := _matrix({key: cells for key, cells in columns.items() if key not in alone}):
                tables.append(f"**{_words(name)}**\n\n{table}")
            tables += [f"**{_words(name)}: {_words(key)}**\n\n{fact_table(columns[key])}" for key in alone]
        else:
            plain |= {f"{name}: {key}": inner for key, inner in value.items() if _is_cell(inner)}
    return Markup("\n\n".join([table for table in [fact_table(plain)] if table] + tables))


def fact_text(value: Any, text: Callable[[Any], str] = markdown_text) -> str:
    """A value in readable form: four significant digits, thousands separators, a dash for `None`.

    Args:
        value: A scalar, a text, or a list of them.
        text: Function that escapes untrusted texts for Markdown or a terminal.
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        is_counted = 1000 <= abs(value) < MAX_DIGITS
        return "undefined" if isnan(value) else f"{value:,.0f}" if is_counted else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(fact_text(part, text) for part in value)
    return text(value)


def is_known(value: Any) -> bool:
    """Whether a value is known; zero and False are, numbers that are not finite are not."""
    return value is not None and value != "" and value != [] and not (isinstance(value, float) and not isfinite(value))


def _columns(mapping: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Inner mappings with only those values that fit into cells; mappings without such values are omitted."""
    columns = {
        name: {key: cell for key, cell in inner.items() if _is_cell(cell)}
        for name, inner in mapping.items()
        if isinstance(inner, Mapping)
    }
    return {name: cells for name, cells in columns.items() if cells}


def _shares_no_name(name: str, columns: Mapping[str, Mapping[str, Any]]) -> bool:
    return all(columns[name].keys().isdisjoint(cells) for other, cells in columns.items() if other != name)


def _matrix(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of two levels of names."""
    names = list(dict.fromkeys(key for cells in columns.values() for key in cells))
    if not names:
        return ""
    table = {key: {name: cells.get(key) for name, cells in columns.items()} for key in names}
    if len(columns) > len(names):
        table = {name: {key: cells.get(key) for key in names} for name, cells in columns.items()}
    header = list(next(iter(table.values())))
    return markdown_table(
        ["", *map(_words, header)],
        [
            [_words(row), *("" if cell is None else fact_text(cell) for cell in cells.values())]
            for row, cells in table.items()
        ],
        numbers=True,
    )


def _is_cell(value: Any) -> bool:
    """Whether a value fits into a table: a scalar, or a short list of them."""
    if isinstance(value, list | tuple):
        return len(value) <= 8 and all(isinstance(item, bool | int | float | str) for item in value)
    return isinstance(value, bool | int | float | str) and is_known(value)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in facts.items():
        name = f"{prefix}{key}"
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(name, value)]
    return found


def _words(name: str) -> str:
    return markdown_text(str(name).replace("_", " "))
