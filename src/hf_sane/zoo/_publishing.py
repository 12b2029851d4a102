"""Plan the commit that adds zoos to a dataset repository, which may already hold others."""

from pathlib import Path

from huggingface_hub import HfApi

from hf_sane.records._manifests import CARD
from hf_sane.records._patience import patiently
from hf_sane.records._uploads import Upload, folder_files, with_texts
from hf_sane.zoo._cards import zoo_card
from hf_sane.zoo._facts import FILE_NAME, ZooFacts, data_folder, facts_json, read_facts
from hf_sane.zoo._writing import check_zoo


def plan_zoo(folder: Path, repo_id: str, api: HfApi) -> Upload:
    """Add all zoos of a folder to a repository, and remove the parquet files of their earlier versions.

    Raises:
        InvalidFileError: If a zoo is incomplete, or files were removed or changed.
        FileNotFoundError: If the folder holds no zoo.
    """
    mine = read_facts(folder)
    for config in mine:
        check_zoo(folder, config, all_digests=True)
    mine = {config: facts.without_folders() for config, facts in mine.items()}
    there = _remote_facts(repo_id, api)
    prefixes = [data_folder(Path(), config).as_posix() for config in mine]
    files = tuple(file for file in folder_files(folder) if file.path.split("/")[0] in prefixes)
    if not files:
        raise FileNotFoundError(f"{folder} has {FILE_NAME} but no data in {prefixes}; build the zoo again")
    known = {**there, **mine}
    files = with_texts(files, {FILE_NAME: facts_json(known), CARD: zoo_card(known, source=repo_id)})
    stale: tuple[str, ...] = ()
    if there:
        present = patiently(api.list_repo_files, repo_id, repo_type="dataset")
        kept = {file.path for file in files}
        stale = tuple(path for path in present if path.split("/")[0] in prefixes and path not in kept)
    return Upload(repo_id, "dataset", files, stale, title=f"Model zoo: {', '.join(sorted(mine))}")


def _remote_facts(repo_id: str, api: HfApi) -> dict[str, ZooFacts]:
    if not patiently(api.repo_exists, repo_id, repo_type="dataset"):
        return {}
    if not patiently(api.file_exists, repo_id, FILE_NAME, repo_type="dataset"):
        return {}
    return read_facts(Path(patiently(api.hf_hub_download, repo_id, FILE_NAME, repo_type="dataset")).parent)
