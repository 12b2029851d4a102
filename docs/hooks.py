"""What MkDocs does to pages before it renders them: links to files outside of docs/ lead to the repository."""

import re
from typing import Any

OUTSIDE = re.compile(r"\]\(\.\./([^)\s]+)\)")


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Turn `](../../runs/demo/report.json)` into a link to the main branch; in a clone, the relative path works."""
    return OUTSIDE.sub(rf"]({config['repo_url'].rstrip('/')}/blob/main/\1)", markdown)
