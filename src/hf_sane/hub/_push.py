"""Kinds of artefacts that can be pushed: required files, completion of the card, and checks."""

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
from hf_sane.core._names import natural_key
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
    """List the files that a push would upload. The Hub is only contacted for a zoo, to list the repository's zoos.

    Args:
        kind: `"model"` (a SANE folder), `"zoo"`, `"samples"` (a sampled network, or a folder of several: the best one
            on validation images is uploaded to the root, the others to subfolders) or `"adapter"` (PEFT).
        folder: Folder to push; it is not changed.
        repo_id: `user/name`, which the code of the card loads from.
        include_code: Add the modelling code to autoencoders and networks, so that they load with
            `trust_remote_code=True` where this library is not installed.
        api: Client to use, for another endpoint or token.

    Raises:
        HFValidationError: If `repo_id` is not a valid repo id.
        InvalidFileError: If the folder is incomplete, or files were changed or removed since it was written.
        ValueError: If the folder lacks files, holds pickles or tokens, or an adapter names no base model on the Hub.
        FileNotFoundError: If the folder holds no zoo or network.
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
    """Save an artefact to a temporary folder and push it; see [`plan_push`] for errors.

    Args:
        save: Function that writes an artefact into a folder.
        repo_id: `user/name`; created if missing.
        kind: Kind of artefact; a soup of adapters is recognised.
        title: Title of the commit; by default the kind of artefact.
        private: Whether a new repository is private; by default as set in the account.
        revision: Branch; by default the main one.
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
    """Records that contain local folders, rewritten without them."""
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
    """The folder of a network itself, or of all networks inside it, `network_2` before `network_10`.

    Raises:
        FileNotFoundError: If it holds no network.
    """
    if (folder / "config.json").is_file():
        return [folder]
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is a file; expected the folder of a network, with config.json")
    if not (inside := folders_with(folder, "config.json")):
        raise FileNotFoundError(f"no network in {folder}; expected config.json in it or in its subfolders")
    return sorted(inside, key=lambda path: natural_key(path.name))


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
    """Refuse a folder that lacks networks of its run, even if its manifest is gone, or that contains other networks.

    The card would describe other networks as results of the run.
    """
    present = {network.name for network in networks}
    manifest = Manifest.load(folder)
    listed = present if manifest is None else {PurePosixPath(name).parts[0] for name in manifest.files}
    if strange := sorted(present - listed):
        raise ValueError(
            f"{folder} also holds {', '.join(strange)}, which its run did not write; move it away, or push it "
            "separately"
        )
    if not (folder / RECORD).is_file():
        return
    saved = RunRecord.load(folder / RECORD).results.get("saved", [])
    if missing := [str(name) for name in saved if name not in present]:
        raise ValueError(
            f"{folder} lacks {', '.join(missing)} of the {len(saved)} networks that its {RECORD} says were saved; "
            "sample them again, or push the folders of networks separately"
        )


def _merit(network: Path) -> tuple[float, int]:
    """Sort key of sampled networks: validation accuracy, then the order of selection; never test accuracy."""
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
