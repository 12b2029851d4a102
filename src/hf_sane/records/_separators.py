"""Separators of delimited text, found from its header."""

import csv

SEPARATORS = ",;\t|"  # by preference


def count_fields(header: str, separator: str) -> int:
    """Number of fields of a header line."""
    return len(next(csv.reader([header.strip()], delimiter=separator), []))


def find_separator(header: str) -> str:
    """The separator that splits a header line into most fields."""
    return max(SEPARATORS, key=lambda separator: count_fields(header, separator))
