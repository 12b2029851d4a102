"""Rendering of the cards of models and zoos (README.md) from templates.

A kind of card is a template in `templates/` and a function that collects its facts. Whatever a template shows is
escaped, unless this library wrote it: see [`markdown_text`][hf_sane.records._escaping.markdown_text] and `Markup`. So
a name of a stranger can neither break a card nor add to it, and a template need not think of that. Blanks around a
value go, too: those that matter belong outside of `{{ }}`.
"""

import re
from base64 import b64encode
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from typing import Any

from huggingface_hub import CardData, ModelCard
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup as HTML

from hf_sane.cards._tables import fact_table, result_tables
from hf_sane.records._escaping import Markup, markdown_code, markdown_text, python_literal
from hf_sane.records._redaction import hide_folders_in
from hf_sane.records._run_record import RunRecord

HERE = "."  # what the code of a card loads from while its folder is at home
# The calls that load from there, an adapter onto a model among them, and what a card says about them.
LOADS_FROM_HERE = re.compile(r'(from_pretrained\((?:\w+, )?)"\."')
LOCAL_NOTE = "Inside this folder:\n\n"


def render(template: str, metadata: CardData | None = None, **facts: Any) -> str:
    """Fill a template.

    Args:
        template: File in `templates/`.
        metadata: Becomes the front matter.
        **facts: What the template names; a name that is missing is an error.
    """
    front_matter = None if metadata is None else Markup(metadata.to_yaml())
    return _environment().get_template(template).render(metadata=front_matter, **facts)


def render_model_card(template: str, metadata: CardData, record: RunRecord, **facts: Any) -> ModelCard:
    """Fill a template that extends `model_card.md`; data, results and provenance come from the run record.

    Args:
        template: File in `templates/`.
        metadata: Becomes the front matter.
        record: Record of the run that made the model. Folders of this machine are left out.
        **facts: What else the template names.
    """
    shown = hide_folders_in(record.to_dict())
    hardware = shown.get("hardware", {})
    told = ("seed", "commit", "has_uncommitted_changes", "started_at", "seconds", "peak_rss_bytes")
    provenance = {
        "command": markdown_code(shown["command"]),
        **{name: shown.get(name) for name in told},
        **{name: hardware.get(name) for name in ("cpu", "cores", "gpus")},
        **shown.get("versions", {}),
    }
    data, results = shown.get("data", {}), shown.get("results", {})
    return ModelCard(render(template, metadata, data=data, results=results, provenance=provenance, **facts))


def address_card(text: str, repo_id: str, *, subfolder: str | None = None) -> str:
    """Let the code of a card load from the Hub in place of the folder that it is in.

    Args:
        text: Text of the card.
        repo_id: Repository that the card is published in.
        subfolder: Folder of the artefact inside the repository.
    """
    validate_repo_id(repo_id)
    source = python_literal(repo_id) + ("" if subfolder is None else f", subfolder={python_literal(subfolder)}")
    return LOADS_FROM_HERE.sub(lambda found: found[1] + source, text).replace(LOCAL_NOTE, "")


def render_page(template: str, *, script: str, **facts: Any) -> str:
    """Fill a template of a page in HTML; whatever it shows is escaped, unless it is `jinja2`'s own `Markup`.

    Args:
        template: File in `templates/`.
        script: File in `templates/` with the only program that the page may run.
        **facts: What else the template names.
    """
    loader = PackageLoader("hf_sane", "cards/templates")
    pages = Environment(
        loader=loader, undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    program, _, _ = loader.get_source(pages, script)
    digest = b64encode(sha256(program.encode()).digest()).decode()
    return pages.get_template(template).render(script=HTML(program), script_digest=HTML(f"sha256-{digest}"), **facts)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("hf_sane", "cards/templates"),
        finalize=markdown_text,  # of all that `{{ }}` shows
        undefined=StrictUndefined,
        autoescape=False,  # that would be HTML's
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "code": markdown_code,
        "literal": python_literal,
        "listed": _listed,
        "facts": fact_table,
        "results": result_tables,
    }
    return environment


def _listed(values: Iterable[object]) -> Markup:
    """Values with commas between them; the `join` of templates would lose what is escaped already."""
    return Markup(", ".join(map(markdown_text, values)))
