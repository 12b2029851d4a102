"""Prepares pages for MkDocs: links to files outside of docs/, and references in docstrings."""

import posixpath
import re
from itertools import takewhile
from typing import Any

RELATIVE = re.compile(r"\]\((\.\./[^)\s]+)\)")
ANCHOR_OR_REFERENCE = re.compile(r'\bid="(hf_sane[\w.]*)"|\[(<code>([\w.]+)</code>)\]')


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Turn `](../../runs/demo/report.json)` into a link to the main branch; in a clone, the relative path works."""

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), match[1]))
        inside = target.startswith("docs/")
        return match[0] if inside else f"]({config['repo_url'].rstrip('/')}/blob/main/{target})"

    return RELATIVE.sub(link, markdown)


def on_page_content(html: str, page: Any, config: Any, **_: Any) -> str:
    """Turn "[`encode`]" in a docstring into a link, to the name nearest to the docstring; plain if it has no entry."""
    anchors = [found[1] for found in ANCHOR_OR_REFERENCE.finditer(html) if found[1]]
    here = ""

    def link(match: re.Match[str]) -> str:
        nonlocal here
        if match[1]:
            here = match[1]
            return match[0]
        targets = [anchor for anchor in anchors if f".{anchor}".endswith(f".{match[3]}")]
        nearest = max(targets, key=lambda anchor: _shared(anchor, here), default=None)
        return f'<a href="#{nearest}">{match[2]}</a>' if nearest else match[2]

    return ANCHOR_OR_REFERENCE.sub(link, html)


def _shared(first: str, second: str) -> int:
    """Number of parts that two dotted names begin with in common."""
    pairs = zip(first.split("."), second.split("."), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
