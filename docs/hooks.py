"""Prepares pages for MkDocs: links to files outside of docs/ lead to the repository."""

import posixpath
import re
from typing import Any

RELATIVE = re.compile(r"\]\((\.\./[^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Turn `](../../runs/demo/report.json)` into a link to the main branch; in a clone, the relative path works."""

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), match[1]))
        inside = target.startswith("docs/")
        return match[0] if inside else f"]({config['repo_url'].rstrip('/')}/blob/main/{target})"

    return RELATIVE.sub(link, markdown)
