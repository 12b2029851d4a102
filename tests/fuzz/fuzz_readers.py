"""Every reader of the library with a small real file of its kind: what `test_readers.py` and `make fuzz` mutate."""

import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import nn

from hf_sane.architectures.presets import cnn_s
from hf_sane.core._adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_adapter_config
from hf_sane.core._layout import Layout
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.networks._images import load_images
from hf_sane.probing._probes import RidgeProbe
from hf_sane.records._documents import read_settings
from hf_sane.records._errors import InvalidFileError
from hf_sane.records._manifests import MANIFEST, Manifest
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._export import PROVENANCE_FILE, Provenance
from hf_sane.symmetry._permutation import PermutationSpec
from hf_sane.tokenization._adapter_changes import open_factors
from hf_sane.tokenization._checkpoints import load_state_dict, parse_index
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._headers import read_meta_state_dict
from hf_sane.tokenization._lazy_checkpoints import open_checkpoint
from hf_sane.tokenization._loading import load_config
from hf_sane.tokenization._pretrained import load_pretrained
from hf_sane.tokenization._safetensors_header import read_header
from hf_sane.zoo._alignment_record import FILE_NAME as ALIGNMENT
from hf_sane.zoo._alignment_record import Alignment
from hf_sane.zoo._dataset import Zoo, ZooSplit, open_data
from hf_sane.zoo._facts import FILE_NAME as FACTS
from hf_sane.zoo._facts import ZooFacts, facts_json, layout_key, read_facts
from hf_sane.zoo._records import MEASURES, ModelRecord, batched, write_parquet
from hf_sane.zoo._stream import ZooStream
from hf_sane.zoo.building._build import check_group, read_group_state
from hf_sane.zoo.importing._arrays import ArrayZoo
from hf_sane.zoo.importing._cards import CardFacts
from hf_sane.zoo.importing._property_columns import typed_columns
from hf_sane.zoo.importing._property_files import PropertyTable, read_properties
from hf_sane.zoo.importing._published import read_run_settings
from hf_sane.zoo.importing._trees import ArchiveTree, FolderTree

MAX_MESSAGE = 2000
MAX_BYTES = 2**26  # no seed holds a megabyte: whoever asks for more has believed a header


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    Attributes:
        file: Name of the file that is mutated.
        read: Reads the folder that holds it.
        seeds: Contents that it accepts.
        check: Raises `AssertionError` if what was accepted cannot be right.
        others: Further files of the folder.
    """

    file: str
    read: Callable[[Path], object]
    seeds: tuple[bytes, ...]
    check: Callable[[Path, object], None] = lambda folder, found: None
    others: Mapping[str, bytes] | None = None
    is_slow: bool = False  # gets a fifth of the inputs


def _torch_file(content: object, *, legacy: bool = False) -> bytes:
    buffer = BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def _check_header(folder: Path, found: object) -> None:
    """What safetensors accepts is read with the same names and shapes; the caller checks the converse."""
    assert isinstance(found, dict)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        expected = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    assert {name: list(tensor.shape) for name, tensor in found.items()} == expected


def safetensors_accepts(path: Path) -> bool:
    """Whether the library that defines the format opens a file."""
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except SafetensorError:
        return False
    return True


def _check_sizes(folder: Path, found: object) -> None:
    assert isinstance(found, Mapping)
    assert sum(tensor.numel() * tensor.itemsize for tensor in found.values()) < MAX_BYTES


def _check_alignment(folder: Path, found: object) -> None:
    assert isinstance(found, Alignment)
    for key, permutation in found.permutations.items():
        for index in permutation.values():
            assert index.shape[0] == len(found.run_ids[key])
            assert all(sorted(row) == list(range(len(row))) for row in index.tolist())


def _check_facts(folder: Path, found: object) -> None:
    assert isinstance(found, dict)
    for facts in found.values():
        assert all(layout_key(layout) == key for key, layout in facts.parsed_layouts.items())
        _ = facts.parsed_architectures, facts.digest


def _check_layout(folder: Path, found: object) -> None:
    assert isinstance(found, Layout)
    assert len(found.signature) == 64
    stored = sum(spec.numel for layer in found.layers for spec in layer.tensors)
    assert found.num_weights == stored


def _check_extractor(folder: Path, found: object) -> None:
    assert isinstance(found, SANEFeatureExtractor)
    values = [value for part in (found.statistics or {}).values() for value in part.values()]
    assert np.isfinite(values).all()


def _check_images(folder: Path, found: object) -> None:
    for split in ("train", "validation", "test"):
        images, labels = found.split(split)  # type: ignore[attr-defined]
        assert images.isfinite().all()
        assert len(images) == len(labels)
        assert 0 <= labels.min() <= labels.max() < found.num_classes  # type: ignore[attr-defined]


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 3))


def _facts() -> tuple[ZooFacts, Layout]:
    from hf_sane.zoo._facts import architecture_facts

    layout = Layout.from_state_dict(_network().state_dict(), token_dim=5)
    key, settings = architecture_facts(cnn_s())
    return (
        ZooFacts(
            "fuzz",
            {layout_key(layout): layout.to_dict()},
            {key: settings},
            {"seed": 0},
            splits={"train": {"networks": 2}, "validation": {"networks": 0}, "test": {"networks": 0}},
        ),
        layout,
    )


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_readers(folder: Path) -> dict[str, Reader]:
    """All readers, by name; `folder` is for files on the way."""
    state = _network().state_dict()
    tensors = save(state, metadata={"format": "pt"})
    facts, layout = _facts()
    spec = PermutationSpec({"a": ("P", None), "b": (None, "P")}, {"P": 3})
    runs = ["r0", "r1"]
    permutation = {"P": torch.tensor([[0, 1, 2], [2, 0, 1]])}
    Alignment({"k": "r0"}, {"k": runs}, {"k": permutation}, {"k": spec}).save(folder / "alignment")
    SANEFeatureExtractor(token_dim=5).fit([state]).save_pretrained(folder / "extractor")
    RunRecord.start(seed=1, arguments={"a": 1}).finish({"b": 0.5}).save(folder / "run.json")
    record = (folder / "run.json").read_bytes()
    probe = RidgeProbe(
        torch.zeros(3).double(),
        torch.ones(3).double(),
        torch.ones(3, 1).double(),
        torch.zeros(1).double(),
        (1.0,),
        (0.5,),
        ("x",),
    )
    probe.save_pretrained(folder / "probe")
    probes = _files(folder / "probe")
    probes.pop(MANIFEST, None)
    (folder / "some").mkdir()
    (folder / "some" / "file.txt").write_text("x")
    Manifest.of(folder / "some", "fuzz").save(folder / "some")
    labels = np.arange(10) % 2
    images = {
        f"{split}_{part}": value
        for split in ("train", "validation", "test")
        for part, value in (("images", np.ones((10, 4, 4), np.uint8)), ("labels", labels))
    }
    np.savez(folder / "raw.npz", **images)
    np.savez_compressed(folder / "small.npz", **images)
    index = {
        "metadata": {"total_size": 8},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }
    adapter = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8.0,
        "rank_pattern": {"a": 2},
        "alpha_pattern": {"b": 1.5},
        "target_modules": ["a"],
    }
    provenance = {
        "method": "kde",
        "anchors": ["a"],
        "seed": 3,
        "bandwidth": "scott",
        "notes": {"x": [1]},
        "test_accuracy": 0.5,
    }
    card = (
        b"---\nlicense: mit\nbase_model: a/b\ntags:\n- x\nmodel-index:\n- name: n\n  results:\n  - task: {type: t}\n"
        b"    dataset: {type: d, name: d}\n    metrics:\n    - {type: accuracy, value: 0.5}\n---\n# Title\n"
    )

    def text(value: object) -> bytes:
        return json.dumps(value).encode()

    return {
        "safetensors header": Reader(
            "model.safetensors", lambda f: read_header(f / "model.safetensors"), (tensors,), _check_header
        ),
        "safetensors": Reader("model.safetensors", load_state_dict, (tensors,), _check_sizes),
        "lazy safetensors": Reader("model.safetensors", lambda f: dict(open_checkpoint(f)), (tensors,), _check_sizes),
        "shard index": Reader(
            "model.safetensors.index.json", lambda f: parse_index(f / "model.safetensors.index.json"), (text(index),)
        ),
        "shards": Reader(
            "model.safetensors.index.json",
            read_meta_state_dict,
            (text(index),),
            _check_sizes,
            {
                "model-00001-of-00002.safetensors": save({"a": torch.ones(1)}),
                "model-00002-of-00002.safetensors": save({"b": torch.ones(1)}),
            },
        ),
        "pickle": Reader(
            "network.pt",
            lambda f: load_state_dict(f / "network.pt"),
            (
                _torch_file(dict(state)),
                _torch_file({"state_dict": dict(state)}),
                _torch_file(dict(state), legacy=True),
            ),
            _check_sizes,
        ),
        "zoo.json": Reader(FACTS, read_facts, (facts_json({"default": facts}).encode(),), _check_facts),
        "layout": Reader(
            "layout.json",
            lambda f: Layout.from_dict(_parsed(f / "layout.json")),
            (text(layout.to_dict()),),
            _check_layout,
        ),
        "alignment": Reader(
            ALIGNMENT, Alignment.load, ((folder / "alignment" / ALIGNMENT).read_bytes(),), _check_alignment
        ),
        "permutation spec": Reader(
            "spec.json", lambda f: PermutationSpec.from_dict(_parsed(f / "spec.json")), (text(spec.to_dict()),)
        ),
        "extractor": Reader(
            "preprocessor_config.json",
            SANEFeatureExtractor.from_pretrained,
            ((folder / "extractor" / "preprocessor_config.json").read_bytes(),),
            _check_extractor,
        ),
        "run record": Reader("run.json", lambda f: RunRecord.load(f / "run.json"), (record,)),
        "provenance": Reader(PROVENANCE_FILE, Provenance.load, (text(provenance),)),
        "probe settings": Reader(
            "probe.json",
            RidgeProbe.from_pretrained,
            (probes["probe.json"],),
            others={"probe.safetensors": probes["probe.safetensors"]},
        ),
        "probe tensors": Reader(
            "probe.safetensors",
            RidgeProbe.from_pretrained,
            (probes["probe.safetensors"],),
            others={"probe.json": probes["probe.json"]},
        ),
        "manifest": Reader(MANIFEST, Manifest.load, ((folder / "some" / MANIFEST).read_bytes(),)),
        "adapter settings": Reader(ADAPTER_CONFIG, read_adapter_config, (text(adapter),)),
        "adapter factors": Reader(
            ADAPTER_WEIGHTS,
            open_factors,
            (save(_lora("base_model.model.a")),),
            others={ADAPTER_CONFIG: text({**adapter, "rank_pattern": {}, "r": 2})},
        ),
        "loose factors": Reader(
            "lora.safetensors",
            lambda f: open_factors(f / "lora.safetensors"),
            (
                save(
                    {
                        "a.lora_down.weight": torch.ones(2, 4),
                        "a.lora_up.weight": torch.ones(3, 2),
                        "a.alpha": torch.ones(()),
                    }
                ),
            ),
        ),
        "settings on the command line": Reader(
            "settings.json",
            lambda f: read_settings(_object_text(f / "settings.json"), "--model"),
            (b'{"hidden_size": 16, "dropout": 0.5, "a": [1, {}]}',),
        ),
        "SANE configuration": Reader(
            "config.json",
            lambda f: load_pretrained(SANEConfig, f, "the configuration of a SANE autoencoder"),
            (text(SANEConfig(token_dim=4, hidden_size=8, latent_dim=4, num_attention_heads=2).to_dict()),),
        ),
        "network configuration": Reader("config.json", load_config, (text(cnn_s().to_dict()),)),
        "group in training": Reader(
            "state.safetensors",
            lambda f: read_group_state(f / "state.safetensors"),
            (save({"state/w": torch.ones(2), "0/w": torch.ones(2), "1/w": torch.ones(2)}),),
        ),
        "group": Reader(
            "group.safetensors",
            lambda f: check_group(f / "group.safetensors", layout, epochs=2, runs=3),
            (save(_group(layout)),),
        ),
        "images": Reader(
            "images.npz",
            lambda f: load_images(f / "images.npz"),
            ((folder / "raw.npz").read_bytes(), (folder / "small.npz").read_bytes()),
            _check_images,
        ),
        "model card": Reader("README.md", lambda f: CardFacts.from_file(f / "README.md"), (card,)),
        "property table": Reader("runs.csv", lambda f: read_properties(f / "runs.csv"), _tables(), _check_table),
        "archive": Reader("zoo.tar", _read_archive, _archives()),
        "array of networks": Reader(
            "layout.csv",
            lambda f: ArrayZoo(FolderTree(f), PurePosixPath()).state_dict(0),
            (b'varname,start_idx,end_idx,shape\nd/bias:0,0,3,"(3,)"\nd/kernel:0,3,9,"(2, 3)"\n',),
            _check_sizes,
            {"weights.npy": _array(np.zeros((2, 9), np.float32))},
        ),
        "settings of a published run": Reader(
            "params.json",
            lambda f: read_run_settings(f / "params.json"),
            (b'{"lr": 0.1, "model::nlin": "relu", "seed": null}',),
        ),
        "zoo": Reader(
            "train-00000-of-00001.parquet",
            lambda f: _open_zoo(f, facts),
            (_zoo_rows(folder),),
            _check_zoo,
            is_slow=True,
        ),
        "streamed zoo": Reader(
            "train-00000-of-00001.parquet",
            lambda f: ZooStream(str(f.parent), f.name, facts).sample("train", 2),
            (_zoo_rows(folder),),
            _check_split,
            is_slow=True,
        ),
    }


def _zoo_rows(folder: Path) -> bytes:
    """The rows that [`_facts`] speaks of."""
    facts, layout = _facts()
    layout_name, architecture = next(iter(facts.layouts)), next(iter(facts.architectures))
    properties = {"layout": layout_name, "architecture": architecture, "epoch": 1, "train_loss": 0.5}
    tokens = layout.tokens(_network().state_dict())
    records = [ModelRecord(tokens, layout.template, {**properties, "run_id": name}) for name in ("a", "b")]
    return write_parquet(batched(records), folder, "train")[0].read_bytes()


def _open_zoo(folder: Path, facts: ZooFacts) -> Zoo:
    with tempfile.TemporaryDirectory() as copies:
        zoo = open_data(folder, facts, copies)
        _check_zoo(folder, zoo)
    return zoo


def _check_zoo(folder: Path, found: object) -> None:
    """Whatever was opened can be used."""
    assert isinstance(found, Zoo)
    _check_split(folder, found.splits["train"])


def _check_split(folder: Path, found: object) -> None:
    assert isinstance(found, ZooSplit)
    for index in range(len(found)):
        found.state_dict(index)
        for name in found.table.scalar_columns:
            found.column(name)


def _array(values: np.ndarray) -> bytes:
    buffer = BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _tables() -> tuple[bytes, ...]:
    buffer = BytesIO()
    pq.write_table(pa.table({"file": ["a", "b"], "acc": [0.5, None]}), buffer)
    texts = ("file;acc;n\na;0,5;1\nb;0,7;2\n", '[{"file": "a", "config": {"lr": 0.1}}]', '{"file": "a"}\n{"x": 1}\n')
    return (*(text.encode() for text in texts), buffer.getvalue(), _events())


def _events() -> bytes:
    """An event file of TensorBoard: its version, and one scalar."""
    buffer = BytesIO()
    writer = RecordWriter(buffer)
    writer.write(Event(wall_time=1.0, file_version="brain.Event:2").SerializeToString())
    summary = Summary(value=[Summary.Value(tag="acc", simple_value=0.5)])
    writer.write(Event(wall_time=2.0, step=7, summary=summary).SerializeToString())
    return buffer.getvalue()


def _archives() -> tuple[bytes, ...]:
    tar, zipped = BytesIO(), BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        member = tarfile.TarInfo("a.safetensors")
        member.size = 12
        archive.addfile(member, BytesIO(b"twelve bytes"))
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.safetensors", "twelve bytes")
    return tar.getvalue(), zipped.getvalue()


def _read_archive(folder: Path) -> object:
    """All members, as far as they are small: an archive may claim any size."""
    tree = ArchiveTree(folder / "zoo.tar")
    return [tree.fetch(path) for path, size in tree.sizes.items() if size is not None and size < MAX_BYTES]


def _check_table(folder: Path, found: object) -> None:
    assert isinstance(found, PropertyTable)
    assert len(found.rows) == len(found.places) > 0
    typed_columns(dict(zip(found.places, found.rows, strict=True)))


def _parsed(path: Path) -> object:
    """JSON that no reader is asked about: what it cannot parse is an empty object."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}


def _object_text(path: Path) -> str:
    """Text that starts like an object: other text is the path of a file."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return text if text.lstrip().startswith("{") else "{" + text


def _lora(module: str) -> dict[str, torch.Tensor]:
    return {f"{module}.lora_A.weight": torch.ones(2, 4), f"{module}.lora_B.weight": torch.ones(3, 2)}


def _group(layout: Layout) -> dict[str, torch.Tensor]:
    tensors = {name: torch.ones(2, 3) for name in (*MEASURES, "largest_weight")}
    tensors |= {f"template.{name}": torch.ones(2, 3, *t.shape).to(t.dtype) for name, t in layout.template.items()}
    return tensors | {"tokens": torch.ones(2, 3, layout.num_tokens, layout.token_dim)}


def _names() -> tuple[str, ...]:
    with tempfile.TemporaryDirectory() as folder:
        return tuple(make_readers(Path(folder)))


READERS = _names()


class Trial:
    """One reader, its folder, and what became of its inputs.

    Attributes:
        accepted: Inputs that were read.
        refused: Inputs for which `InvalidFileError` was raised.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder / "mutated"
        self.folder.mkdir(parents=True)
        (folder / "made").mkdir()
        self.name, self.reader = name, make_readers(folder / "made")[name]
        for file, content in (self.reader.others or {}).items():
            (self.folder / file).write_bytes(content)
        self.accepted = self.refused = 0

    def run(self, content: bytes) -> bool:
        """Read one input; whether it was accepted."""
        path = self.folder / self.reader.file
        path.write_bytes(content)
        try:
            found = self.reader.read(self.folder)
        except FileNotFoundError:  # an index may name a file that is not there
            assert self.reader.others
            self.refused += 1
            return False
        except InvalidFileError as error:
            refusal = error
        else:
            self.accepted += 1
            self.reader.check(self.folder, found)
            return True
        self.refused += 1
        assert str(refusal).isprintable()
        assert len(str(refusal)) < MAX_MESSAGE
        assert self.name != "safetensors header" or is_exempt(refusal) or not safetensors_accepts(path)
        return False

    def counts(self) -> dict[str, int]:
        """For the record."""
        return {"inputs": self.accepted + self.refused, "accepted": self.accepted, "refused": self.refused}


def is_exempt(error: InvalidFileError) -> bool:
    """Refused on purpose though safetensors accepts it: what torch cannot hold and the format forbids."""
    unknown_dtype = error.field == "dtype"
    too_large = "fits into 64 bits" in error.expected
    return unknown_dtype or too_large or "occurs twice" in error.got or "an object with dtype" in error.expected
