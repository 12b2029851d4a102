"""Import existing networks of any architecture from the Hub or a folder."""

import errno
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from os.path import commonpath
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from datasets import Features, Value
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
    StrictDataclassError,
)
from safetensors import SafetensorError

from hf_sane.records._disks import NO_SPACE
from hf_sane.records._documents import Entry
from hf_sane.records._errors import MALFORMED, InvalidFileError, name_some, reading, shorten
from hf_sane.records._failures import describe_error
from hf_sane.records._run_record import RunRecord
from hf_sane.zoo._dataset import Zoo, open_data
from hf_sane.zoo._facts import DEFAULT_CONFIG, PROPERTIES_KEY, ZooFacts, data_folder, read_facts
from hf_sane.zoo._records import FEATURES, IMPORT_FEATURES, ModelRecord, batched, write_parquet
from hf_sane.zoo._writing import (
    NETWORKS_NAME,
    RECORD_NAME,
    REPORT_NAME,
    is_finished,
    read_facts_or_none,
    remove_networks,
    tidy,
    writing_zoo,
)
from hf_sane.zoo.building._settings import split_runs
from hf_sane.zoo.importing._network_names import NetworkName, read_name, read_pattern, with_saved_times
from hf_sane.zoo.importing._property_columns import PropertyColumns, typed_columns
from hf_sane.zoo.importing._property_files import PropertyTable, read_all_tables
from hf_sane.zoo.importing._property_rows import Matched, match_rows
from hf_sane.zoo.importing._published import published_table, read_published_name
from hf_sane.zoo.importing._reading import ImportedNetwork, import_network, network_files
from hf_sane.zoo.importing._run_logs import FILE, logged_table
from hf_sane.zoo.importing._saved_facts import add_saved_facts
from hf_sane.zoo.importing._settings import ImportSettings
from hf_sane.zoo.importing._sources import Repository, Source, find_networks, find_sources
from hf_sane.zoo.importing._trees import Tree, open_tree

logger = logging.getLogger(__name__)

MAX_METRICS = 50  # columns
MAX_REASON = 500  # characters
# Errors caused by the repository: retrying would not help.
UNUSABLE: tuple[type[Exception], ...] = (
    *MALFORMED,
    RuntimeError,  # raised by PyTorch
    SafetensorError,
    FileNotFoundError,
    SafetensorsParsingError,
    StrictDataclassError,
    EntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
# Errors caused by the connection or the machine, unless listed above: the next import retries.
PASSING: tuple[type[Exception], ...] = (OSError, HTTPError)
EXPECTED = UNUSABLE + PASSING


@dataclass(frozen=True, slots=True)
class ImportEntry:
    """Outcome for one network, or for a repository without networks.

    Attributes:
        run_id: Its name in the zoo: `repo_id`, followed by the file if the repository holds several networks.
        status: `"failed"` if another attempt may succeed.
        reason: Reason why it was not imported.
    """

    run_id: str
    status: Literal["taken", "skipped", "failed"]
    reason: str | None = None


@dataclass(frozen=True)
class ImportResult:
    """A zoo of imported networks, and the outcome for each network.

    Attributes:
        zoo: The zoo.
        entries: One entry per network, and per repository without networks.
    """

    zoo: Zoo
    entries: tuple[ImportEntry, ...]

    @property
    def notes(self) -> list[str]:
        """How rows of property tables were matched with networks, and which rows were not used."""
        return list(self.zoo.facts.data.get(PROPERTIES_KEY, {}).get("notes", ()))


def import_zoo(
    arguments: ImportSettings,
    output: str | Path,
    *,
    config: str = DEFAULT_CONFIG,
    api: HfApi | None = None,
    on_entry: Callable[[ImportEntry], None] | None = None,
    on_found: Callable[[int], None] | None = None,
    describe: Callable[[Path, "ImportResult"], object] | None = None,
) -> ImportResult:
    """Import networks of any architectures into a zoo.

    For each network on the Hub, the size is checked first, then the header is read (a range request of 100 kB), and
    only networks that can be imported are downloaded; all others are listed with the reason. Networks are stored in
    the work folder as soon as they are read: repeat the call to continue an import that was interrupted or could not
    reach some networks.

    Licence, downloads, likes, revision and the card's metrics become columns, as do properties from tables
    (`ImportSettings.properties`) and names (`ImportSettings.pattern`); other accuracies and hyper-parameters are null.
    Each group (`ImportSettings.group_by`) is assigned to one split. Networks with the same weights as an earlier
    network are skipped, since they could leak between splits.

    Args:
        arguments: What to import.
        output: Folder of the zoo; it may already hold zoos under other names.
        config: Name of this zoo in the folder.
        api: Hub client, for another endpoint or token.
        on_entry: Called with the entry of every network.
        on_found: Called before the first network is read, with the number of sources.
        describe: Called with the folder of the files and the outcome, before the zoo is finished, to add a report.

    Returns:
        The zoo, as loaded by `Zoo.load(output, config)`, and the outcome for each network.

    Raises:
        ValueError: If no network could be imported, there are fewer groups than splits, or the folder holds another
            zoo under that name.
        FileExistsError: If the folder holds something else.
        FolderInUseError: If another process is writing to the folder.
        OSError: If the disk is full.
    """
    folder = Path(output)
    report = data_folder(folder, config) / REPORT_NAME
    tables = read_all_tables([Path(path) for path in arguments.properties])
    as_json = arguments.to_dict()
    if tables:
        as_json["properties"] = [{"file": table.file, "sha256": table.digest} for table in tables]
    if is_known := config in read_facts_or_none(folder):
        _compare(folder, read_facts(folder)[config].arguments, json.loads(json.dumps(as_json)))
    if is_known and is_finished(folder, config) and report.is_file():
        tidy(folder, config)
        with reading(report, expected="the report of an import", remedy="remove it to import again"):
            found = [Entry(entry, str(report)) for entry in json.loads(report.read_text(encoding="utf-8"))]
            entries = tuple(ImportEntry(**entry.fields_of(ImportEntry)) for entry in found)
        if not any(entry.status == "failed" for entry in entries):
            remove_networks(folder, config)
            return ImportResult(Zoo.load(folder, config), entries)
    with writing_zoo(folder, config, replace=is_known) as writer:
        record = RunRecord.start(seed=arguments.seed, arguments=as_json)
        importer = _Importer(arguments, folder / NETWORKS_NAME / config)
        sources = list(find_sources(arguments, api or HfApi(), importer.tree))
        if on_found is not None:
            on_found(len(sources))
        for source in sources:
            for entry in importer.take(source):
                if on_entry is not None:
                    on_entry(entry)
        if not importer.entries:
            raise ValueError(
                f"no network was found{'' if arguments.folder is None else f' in {arguments.folder}'}; expected files "
                "of safetensors or torch.save, folders of models, or an archive of these"
            )
        if not importer.networks:
            reasons = "; ".join(
                f"{name_some(names)}: {reason}" for (_, reason), names in left_out(importer.entries).items()
            )
            raise ValueError(f"none of {len(importer.entries)} networks could be imported ({reasons})")
        stage = writer.begin()
        facts = _write_rows(importer, stage, as_json, tables)
        became = [asdict(entry) for entry in importer.entries]
        (stage / REPORT_NAME).write_text(json.dumps(became, indent=1) + "\n", encoding="utf-8")
        record.finish({"splits": facts.splits, "excluded": len(facts.excluded)}, data=dict(facts.data))
        record.save(stage / RECORD_NAME)
        if describe is not None:
            zoo = open_data(stage, facts, writer.cache)
            describe(stage, ImportResult(zoo, tuple(importer.entries)))
        writer.publish(facts)
        if not any(entry.status == "failed" for entry in importer.entries):
            remove_networks(folder, config)
    return ImportResult(Zoo.load(folder, config), tuple(importer.entries))


def _compare(folder: Path, known: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    if changed := sorted(name for name in mine.keys() | known.keys() if mine.get(name) != known.get(name)):
        raise ValueError(
            f"{folder} holds a finished zoo with other settings of {', '.join(changed)}: expected "
            f"{[known.get(name) for name in changed]}, got {[mine.get(name) for name in changed]}; use another "
            "folder, or another name (--zoo-config)"
        )


class _Importer:
    """The networks imported so far, and the outcomes of all others."""

    def __init__(self, arguments: ImportSettings, work: Path) -> None:
        self.arguments, self.work = arguments, work
        self.tree = None if arguments.folder is None else open_tree(Path(arguments.folder))
        self.networks: dict[str, ImportedNetwork] = {}
        self.repositories: dict[str, Repository] = {}  # opened repositories, by label
        self.sources: dict[str, Repository] = {}  # by network
        self.entries: list[ImportEntry] = []
        self._structures: dict[str, Mapping[str, Any]] = {}  # layouts and architectures, by their keys
        self._digests: dict[str, str] = {}  # network of each file on the Hub, by digest
        self._contents: dict[str, str] = {}  # first network with each content, by digest

    def take(self, source: Source) -> Iterator[ImportEntry]:
        """Import the networks of a source; record the reasons why others cannot be imported."""
        name = source.label
        try:
            name.encode()  # names that are not valid Unicode cannot be stored
            for repository in source.open():
                files = find_networks(
                    repository.files,
                    self.arguments.files,
                    allow_pickle=self.arguments.allow_pickle,
                    readers=repository.readers,
                    subfolder=self.arguments.subfolder if repository.revision else None,
                    variant=self.arguments.variant,
                )
                self.repositories[repository.label] = repository
                for file in files:
                    name = repository.label if len(files) == 1 else f"{repository.label}/{file}"
                    yield self._attempt(repository, file, name)
        except EXPECTED as error:
            _raise_if_full(error)
            yield self._note(ImportEntry(name, _status(error), _reason(error, name)))

    def _attempt(self, repository: Repository, file: str, name: str) -> ImportEntry:
        try:
            network = self._import(repository, file)
        except EXPECTED as error:
            _raise_if_full(error)
            return self._note(ImportEntry(name, _status(error), _reason(error, name)))
        network = self._with_shared_structures(network)
        if (first := self._contents.setdefault(network.content, name)) != name:
            return self._note(ImportEntry(name, "skipped", f"it has the same weights as {first}"))
        if file in repository.digests:
            self._digests[repository.digests[file]] = name
        self.networks[name], self.sources[name] = network, repository
        return self._note(ImportEntry(name, "taken"))

    def _with_shared_structures(self, network: ImportedNetwork) -> ImportedNetwork:
        """Store each layout only once, since thousands of networks share a few."""
        layout, architecture = (str(network.properties[name]) for name in ("layout", "architecture"))
        return replace(
            network,
            layout=self._structures.setdefault(layout, network.layout),
            architecture=self._structures.setdefault(architecture, network.architecture),
        )

    def _import(self, repository: Repository, file: str) -> ImportedNetwork:
        if first := self._digests.get(repository.digests.get(file, "")):
            raise ValueError(f"it is the same file as {first}")
        files = network_files(repository, file, self.arguments)
        key = {} if self.arguments.key is None else {"key": self.arguments.key}
        settings = json.dumps([repository.label, file, repository.state, self.arguments.token_settings | key])
        path = self.work / f"{sha256(settings.encode()).hexdigest()[:32]}.safetensors"
        if path.exists():
            with suppress(InvalidFileError):  # damaged, and therefore imported again
                return ImportedNetwork.load(path)
        return import_network(repository, file, files, self.arguments, path)

    def _note(self, entry: ImportEntry) -> ImportEntry:
        # File names that are not Unicode cannot be written to records.
        entry = replace(entry, run_id=entry.run_id.encode(errors="backslashreplace").decode())
        self.entries.append(entry)
        return entry


def _raise_if_full(error: Exception) -> None:
    """Raise the error of a full disk, which is not the fault of a network and would recur with the next network."""
    if isinstance(error, OSError) and error.errno in (*NO_SPACE, errno.EROFS):
        raise error


def _status(error: Exception) -> Literal["skipped", "failed"]:
    """Status by whether a retry could help; a download that reaches neither Hub nor cache also reports "not found"."""
    if isinstance(error, LocalEntryNotFoundError) or not isinstance(error, UNUSABLE):
        return "failed"
    return "skipped"


def _reason(error: Exception, name: str) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "its name is not valid Unicode; rename it"
    text = describe_error(error)
    file = error.file if isinstance(error, InvalidFileError) else getattr(error, "filename", None)
    # reasons are published with the zoo, so they must not contain local paths; one reason for many files is given once
    if file:
        own = Path(str(file)).name
        text = text.replace(str(file), own).removeprefix(f"{own}: " if own == PurePosixPath(name).name else "")
    return shorten(text, MAX_REASON)


def left_out(entries: Sequence[ImportEntry]) -> dict[tuple[str, str], list[str]]:
    """Networks that were not imported, by status and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        if entry.status != "taken":
            found.setdefault((entry.status, entry.reason or ""), []).append(entry.run_id)
    return found


def group_networks(repo_ids: Sequence[str], base_models: Mapping[str, Sequence[str]]) -> list[str]:
    """The family of each repository: the alphabetically first repository that `base_model` connects it to.

    Args:
        repo_ids: Repositories.
        base_models: Base models of each repository, which need not be among `repo_ids`.
    """
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while parents.setdefault(name, name) != name:
            name = parents[name]
        return name

    for repo_id in sorted(base_models):
        for base in base_models[repo_id]:
            first, second = sorted((root(repo_id), root(base)))
            parents[second] = first
    return [root(repo_id) for repo_id in repo_ids]


def _groups(importer: _Importer, runs: Mapping[str, str]) -> dict[str, str]:
    """The group of each network, which must stay in one split; `runs` are known from properties or names."""
    repo_ids = [str(network.properties["repo_id"]) for network in importer.networks.values()]
    keys = [runs.get(name, importer.sources[name].group) for name in importer.networks]
    if importer.arguments.group_by == "network":
        keys = list(importer.networks)
    elif importer.arguments.group_by == "base_model":
        bases = {repository.repo_id: repository.card.base_models for repository in importer.repositories.values()}
        keys = group_networks(repo_ids, bases)
    elif importer.arguments.group_by == "author":
        authors = [network.properties.get("author") for network in importer.networks.values()]
        keys = [str(author or repo_id) for author, repo_id in zip(authors, repo_ids, strict=True)]
    return dict(zip(importer.networks, keys, strict=True))


def _parted(importer: _Importer, places: Mapping[str, str], runs: Mapping[str, str]) -> list[str]:
    """Runs, repositories and folders whose networks are in several splits; `places` maps networks to splits."""
    found: dict[str, set[str]] = {}
    for name, split in places.items():
        found.setdefault(runs.get(name, importer.sources[name].group), set()).add(split)
    return sorted(group for group, splits in found.items() if len(splits) > 1)


def _match_properties(importer: _Importer, tables: Sequence[PropertyTable]) -> tuple[Matched, PropertyColumns]:
    """Properties of each network from tables and names."""
    pattern = importer.arguments.pattern
    take = None if pattern is None else read_pattern(pattern)
    names = [
        _network_name(name, importer.sources[name], take, network.times) for name, network in importer.networks.items()
    ]
    found = [*tables]
    if importer.tree is not None and any(repository.run for repository in importer.sources.values()):
        published = published_table(names, partial(_fetch_or_none, importer.tree))
        found += [] if published is None else [published]
    if importer.tree is not None:
        logged = logged_table(
            [network for network in names if importer.sources[network.name].run is None], importer.tree
        )
        found += [] if logged is None else [logged]
    if rows := [
        {FILE: name, **repository.properties} for name, repository in importer.sources.items() if repository.properties
    ]:
        found.append(PropertyTable("metrics", rows, [str(row[FILE]) for row in rows]))
    matched = match_rows(found, names, importer.arguments.properties_key)
    if take is not None and (others := [name for name in importer.networks if take(name) is None]):
        if len(others) == len(importer.networks):
            raise ValueError(
                f"no path matches the pattern {pattern!r}: expected a pattern for {name_some(others)}; paths are "
                f"relative to the "
                "folder, with / as separator"
            )
        matched.notes.append(f"paths that do not match the pattern: {len(others)} ({name_some(others)})")
    matched.runs = _short_runs(matched.runs)
    for name, times in matched.times.items():
        if "epoch" in times:
            matched.rows[name]["epoch"] = times["epoch"]
    saved = {name: network.saved for name, network in importer.networks.items()}
    matched.notes += add_saved_facts(matched.rows, saved)
    return matched, typed_columns(matched.rows)


def _short_runs(runs: Mapping[str, str]) -> dict[str, str]:
    """Run names for publication: absolute paths are shortened by their common part."""
    paths = {run for run in runs.values() if PurePosixPath(run).is_absolute()}
    common = PurePosixPath(commonpath(paths)) if len(paths) > 1 else None
    short = {}
    for name, run in runs.items():
        path = PurePosixPath(run)
        if run in paths:
            run = path.name if common is None else str(path.relative_to(common))
        short[name] = run
    return short


def _network_name(
    name: str,
    repository: Repository,
    take: Callable[[str], dict[str, Any] | None] | None,
    saved: Mapping[str, int],
) -> NetworkName:
    found = read_name(name, take) if repository.run is None else read_published_name(name, repository.run)
    return with_saved_times(found, saved)


def _fetch_or_none(tree: Tree, path: str) -> Path | None:
    path = PurePosixPath(path).as_posix()
    return tree.fetch(path) if tree.sizes.get(path) is not None else None


def _write_rows(
    importer: _Importer, folder: Path, as_json: Mapping[str, Any], tables: Sequence[PropertyTable]
) -> ZooFacts:
    """Write the networks of the work folder as parquet files."""
    arguments, networks = importer.arguments, importer.networks
    matched, properties = _match_properties(importer, tables)
    groups = _groups(importer, matched.runs)
    wanted = sum(share > 0 for share in arguments.split_shares)
    names = sorted(set(groups.values()))
    if len(names) < wanted:
        raise ValueError(
            f"expected at least {wanted} groups by {arguments.group_by} for {wanted} splits, got {len(names)} of "
            f"{len(networks)} network{'' if len(networks) == 1 else 's'}; import more, or set split_shares, such as "
            "1,0,0 (--split-shares). Files of one folder are one group, since they may be checkpoints of one run; "
            "otherwise set group_by network (--group-by)"
        )
    metrics = {name: repository.card.metrics for name, repository in importer.sources.items()}
    columns = [
        name for name, _ in Counter(key for found in metrics.values() for key in found).most_common(MAX_METRICS)
    ]
    claims = {name: Value("float64") for name in sorted(columns)}
    features = Features({**FEATURES, **IMPORT_FEATURES, **properties.features, **claims})
    splits = {}
    places: dict[str, str] = {}
    for split, members in split_runs(names, arguments.split_shares, arguments.seed).items():
        chosen = [name for name in networks if groups[name] in set(members)]
        places |= dict.fromkeys(chosen, split)

        def records(chosen: list[str] = chosen) -> Iterator[ModelRecord]:
            for name in chosen:
                known = {**metrics[name], **properties.rows[name], "run_id": matched.runs.get(name, name)}
                yield networks[name].record(known)

        write_parquet(batched(records(), features), folder, split)
        runs = len({matched.runs.get(name, name) for name in chosen})
        splits[split] = {"runs": runs, "networks": len(chosen), "groups": len(members)}
    if parted := _parted(importer, places, matched.runs):
        logger.warning(
            "networks of one folder or repository are in several splits, grouped by %s: %s. Checkpoints of one run "
            "in both training and test splits make results look better than they are; group_by repository "
            "(--group-by) keeps "
            "them together",
            arguments.group_by,
            name_some(parted),
        )
    licenses = Counter(str(network.properties.get("license") or "not stated") for network in networks.values())
    data = {
        "repositories": len({network.properties["repo_id"] for network in networks.values()}),
        "networks": len(networks),
        "licenses": dict(licenses.most_common()),
        "license": next(iter(licenses)) if len(licenses) == 1 and "not stated" not in licenses else "other",
        "metrics": sorted(columns),
        "parted": len(parted),
        "sha256": sha256("".join(network.content for network in networks.values()).encode()).hexdigest(),
    }
    if importer.tree is not None and importer.tree.cut is not None:
        data["cut"] = importer.tree.cut
    if properties.described:
        data[PROPERTIES_KEY] = {
            "columns": properties.described,
            "unmatched_rows": matched.unmatched,
            "notes": [*matched.notes, *properties.notes],
        }
    left_out = [entry for entry in importer.entries if entry.status != "taken"]
    return ZooFacts(
        name=arguments.name or arguments.author or arguments.to_dict()["folder"] or "imported",
        layouts={str(n.properties["layout"]): n.layout for n in networks.values()},
        architectures={str(n.properties["architecture"]): n.architecture for n in networks.values()},
        arguments=as_json,
        data=data,
        excluded=tuple({"run_id": entry.run_id, "epoch": None, "reason": entry.reason} for entry in left_out),
        splits=splits,
    )
