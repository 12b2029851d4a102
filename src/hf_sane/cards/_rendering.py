"""Rendering of the cards of models and zoos (README.md) from templates.

Each kind of card has a template in `templates/` and a function that collects its facts. All values in a template are
escaped, except `Markup` from this library; see [`markdown_text`][hf_sane.records._escaping.markdown_text]. Untrusted
names can therefore not break or extend a card, without any care in the template. Spaces around a value are removed;
write required ones outside of `{{ }}`.
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

HERE = "."  # source in the code of a card before its folder is pushed
# Calls that load from this folder, also an adapter onto a model, and the note about them.
LOADS_FROM_HERE = re.compile(r'(from_pretrained\((?:\w+, )?)"\."')
LOCAL_NOTE = "Inside this folder:\n\n"


def render(template: str, metadata: CardData | None = None, **facts: Any) -> str:
    """Fill a template.

    Args:
        template: File in `templates/`.
        metadata: Content of the front matter.
        **facts: Variables of the template; a missing one is an error.
    """
    front_matter = None if metadata is None else Markup(metadata.to_yaml())
    return _environment().get_template(template).render(metadata=front_matter, **facts)


def render_model_card(template: str, metadata: CardData, record: RunRecord, **facts: Any) -> ModelCard:
    """Fill a template that extends `model_card.md`; data, results and provenance come from the run record.

    Args:
        template: File in `templates/`.
        metadata: Content of the front matter.
        record: Record of the run that created the model; local folders are omitted.
        **facts: Further variables of the template.
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
    """Make the code of a card load from the Hub instead of the folder of the card.

    Args:
        text: Text of the card.
        repo_id: Repository of the card.
        subfolder: Folder of the artefact inside the repository.
    """
    validate_repo_id(repo_id)
    source = python_literal(repo_id) + ("" if subfolder is None else f", subfolder={python_literal(subfolder)}")
    return LOADS_FROM_HERE.sub(lambda found: found[1] + source, text).replace(LOCAL_NOTE, "")


def render_page(template: str, *, script: str, **facts: Any) -> str:
    """Fill a template of an HTML page; all values are escaped, except `jinja2`'s own `Markup`.

    Args:
        template: File in `templates/`.
        script: File in `templates/` with the only script that the page may run.
        **facts: Further variables of the template.
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
        finalize=markdown_text,  # applied to every value in `{{ }}`
        undefined=StrictUndefined,
        autoescape=False,  # which would escape for HTML
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
    """Values separated by commas; the `join` filter would escape values again."""
    return Markup(", ".join(map(markdown_text, values)))
