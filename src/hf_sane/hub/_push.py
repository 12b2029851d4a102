"""The kinds of artefacts that can be pushed: required files, completion of the card, further checks."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import quote

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

from hf_sane.cards._rendering import address_card, render
from hf_sane.cards._tables import fact_text, markdown_table
from hf_sane.core._adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_adapter_config
from hf_sane.hub._publish import code_files
from hf_sane.records._documents import read_document
from hf_sane.records._escaping import markdown_text
from hf_sane.records._files import folders_with
from hf_sane.records._manifests import AGAIN, CARD, Manifest
from hf_sane.records._outputs import check_finished
from hf_sane.records._redaction import hide_folders_in
from hf_sane.records._run_record import RECORD, RunRecord
from hf_sane.records._sources import hub_id
from hf_sane.records._uploads import RepoFile, Upload, folder_files, require_files, with_texts
from hf_sane.sampling._export import PROVENANCE_FILE, Provenance
from hf_sane.zoo._publishing import plan_zoo

Kind = Literal["model", "zoo", "samples", "adapter"]
NETWORK_FILES = (CARD, "config.json", "model.safetensors")


def plan_push(
    kind: Kind, folder: str | Path, repo_id: str, *, include_code: bool = True, api: HfApi | None = None
) -> Upload:
    """List what a push would do. Only for a zoo the Hub is asked: which other zoos the repository holds already.

    Args:
        kind: `"model"` (a SANE folder), `"zoo"`, `"samples"` (a sampled network, or a folder of several: the best one
            on validation images comes to the root, the others into subfolders) or `"adapter"` (PEFT).
        folder: What is pushed; it is not changed.
        repo_id: `user/name`; the code of the card loads from there.
        include_code: Add the modelling code to autoencoders and networks, so that `trust_remote_code=True` opens them
            where this library is not installed.
        api: Client to use, for another endpoint or token.

    Raises:
        HFValidationError: If `repo_id` is not a valid repo id.
        InvalidFileError: If the folder is unfinished, or lost or changed files since it was written.
        ValueError: If the folder lacks files, holds pickles or tokens, or an adapter names no base model on the Hub.
        FileNotFoundError: If the folder holds no zoo, or no network.
    """
    validate_repo_id(repo_id)
    if kind not in PLANS:
        raise ValueError(f"expected a kind of artefact, one of {', '.join(PLANS)}, got {kind!r}")
    check_finished(folder, all_digests=True)
    upload = PLANS[kind](Path(folder), repo_id, api or HfApi())
    upload = replace(upload, files=with_texts(upload.files, _without_folders(upload.files)))
    if not include_code or kind not in ("model", "samples"):
        return upload
    homes = [PurePosixPath(file.path).parent for file in upload.files if file.path.split("/")[-1] == "config.json"]
    texts: dict[str, str] = {}
    for home in homes:
        source = next(file.content for file in upload.files if file.path == (home / "config.json").as_posix())
        assert isinstance(source, Path)
        texts |= {(home / name).as_posix(): text for name, text in code_files(source.parent).items()}
    return replace(upload, files=with_texts(upload.files, texts))


def push_saved(
    save: Callable[[Path], object],
    repo_id: str,
    *,
    kind: Kind = "samples",
    title: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    include_code: bool = True,
    api: HfApi | None = None,
) -> str:
    """Publish what a function saves to a folder; see [`plan_push`] for errors.

    Args:
        save: Writes an artefact to the folder that it is given.
        repo_id: `user/name`; created if missing.
        kind: Kind of artefact; a soup of adapters is recognised.
        title: Title of the commit; by default what the artefact is.
        private: Whether a new repository is private; if `None`, the account's default.
        revision: Branch; if `None`, the default branch.
        include_code: Add the modelling code, so that the networks load without this library.
        api: Client for another endpoint or token.

    Returns:
        URL of the commit.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / kind
        save(folder)
        found: Kind = "adapter" if kind == "samples" and (folder / ADAPTER_CONFIG).is_file() else kind
        upload = plan_push(found, folder, repo_id, include_code=include_code, api=api)
        return replace(upload, title=title or upload.title).push(api, private=private, revision=revision)


def _without_folders(files: Sequence[RepoFile]) -> dict[str, str]:
    """The records among the files that name folders of this machine, without them."""
    found = {}
    for file in files:
        if PurePosixPath(file.path).name in (RECORD, PROVENANCE_FILE) and isinstance(file.content, Path):
            document = read_document(file.content, expected="a record (a JSON object)", remedy=AGAIN).mapping()
            if (shared := hide_folders_in(document)) != document:
                found[file.path] = json.dumps(shared, indent=2) + "\n"
    return found


def _plan_model(folder: Path, repo_id: str, api: HfApi) -> Upload:
    require_files(folder, (*NETWORK_FILES, "preprocessor_config.json"), what="SANE folder")
    files = with_texts(folder_files(folder), {CARD: address_card(_text(folder / CARD), repo_id)})
    return Upload(repo_id, "model", files, title="SANE autoencoder with its weight tokenizer, record and card")


def network_folders(folder: Path) -> list[Path]:
    """A folder that is a network, or the networks inside it, `network_2` before `network_10`.

    Raises:
        FileNotFoundError: If it is neither.
    """
    if (folder / "config.json").is_file():
        return [folder]
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is a file; expected the folder of a network, with config.json")
    if not (inside := folders_with(folder, "config.json")):
        raise FileNotFoundError(f"no network in {folder}; expected config.json there, or in folders inside it")
    return sorted(inside, key=lambda path: (len(path.name), path.name))


def _plan_samples(folder: Path, repo_id: str, api: HfApi) -> Upload:
    networks = network_folders(folder)
    if networks != [folder]:
        _check_complete(folder, networks)
    networks.sort(key=_merit, reverse=True)
    files: tuple[RepoFile, ...] = ()
    for place, network in enumerate(networks):
        if network != folder:
            check_finished(network, all_digests=True)
        require_files(network, NETWORK_FILES, what="network")
        card = address_card(_text(network / CARD), repo_id, subfolder=network.name if place else None)
        if place == 0:
            card += _others(networks[1:], repo_id)
        prefix = f"{network.name}/" if place else ""
        files += with_texts(folder_files(network, prefix=prefix), {f"{prefix}{CARD}": card})
    return Upload(repo_id, "model", files, title=f"Sampled networks: {len(networks)}")


def _check_complete(folder: Path, networks: list[Path]) -> None:
    """Refuse a folder that lacks networks that its run saved, whether or not it still has its manifest, or has others.

    The card would say of them what is true of those that the run made.
    """
    present = {network.name for network in networks}
    manifest = Manifest.load(folder)
    listed = present if manifest is None else {PurePosixPath(name).parts[0] for name in manifest.files}
    if strange := sorted(present - listed):
        raise ValueError(
            f"{folder} also holds {', '.join(strange)}, which the run that made it did not write; move it away, or "
            "push it by itself"
        )
    if not (folder / RECORD).is_file():
        return
    saved = RunRecord.load(folder / RECORD).results.get("saved", [])
    if missing := [str(name) for name in saved if name not in present]:
        raise ValueError(
            f"{folder} lacks {', '.join(missing)} of the {len(saved)} networks that its {RECORD} says were saved; "
            "sample them again, or push the folders of single networks"
        )


def _merit(network: Path) -> tuple[float, int]:
    """Order of sampled networks: validation accuracy, else the order they were kept in; never test accuracy."""
    facts = Provenance.load(network) if (network / PROVENANCE_FILE).exists() else Provenance("")
    return (-1.0 if facts.validation_accuracy is None else facts.validation_accuracy, -(facts.index or 0))


def _link(folder: str) -> str:
    return f"[{markdown_text(folder)}]({quote(folder)}/{CARD})"


def _others(networks: list[Path], repo_id: str) -> str:
    rows = []
    for network in networks:
        facts = Provenance.load(network) if (network / PROVENANCE_FILE).exists() else Provenance("")
        measured = (facts.validation_accuracy, facts.test_accuracy)
        rows.append([_link(network.name), *("" if m is None else fact_text(m) for m in measured)])
    if not rows:
        return ""
    example = f'from_pretrained("{repo_id}", subfolder="{networks[0].name}")'
    table = markdown_table(["subfolder", "validation accuracy", "test accuracy"], rows, numbers=True)
    return render("other_networks.md", example=example, networks=table)


def _plan_adapter(folder: Path, repo_id: str, api: HfApi) -> Upload:
    require_files(folder, (CARD, ADAPTER_CONFIG, ADAPTER_WEIGHTS), what="adapter")
    base = read_adapter_config(folder).get("base_model_name_or_path")
    if hub_id(base) is None:
        raise ValueError(
            f"the adapter in {folder} belongs to {base!r}, which is not a repository on the Hub; push that model "
            "first, and save the adapter with base_model_name_or_path set to its repo id"
        )
    files = with_texts(folder_files(folder), {CARD: address_card(_text(folder / CARD), repo_id)})
    return Upload(repo_id, "model", files, title=f"Adapter for {base}")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


PLANS: dict[str, Callable[[Path, str, HfApi], Upload]] = {
    "model": _plan_model,
    "zoo": plan_zoo,
    "samples": _plan_samples,
    "adapter": _plan_adapter,
}
