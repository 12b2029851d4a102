"""Every function that saves an artefact writes all or nothing, never over the files of others."""

import os
import stat

import pytest
from artefact_writers import (
    PROVENANCE,
    RECORD,
    WRITERS,
    adapter,
    network,
    network_adapter,
    probe,
    sane,
)

from hf_sane.architectures.presets import cnn_digits
from hf_sane.core._adapters import load_adapter, read_adapter_config
from hf_sane.hub._adapters import write_adapter_card
from hf_sane.hub._publish import load_sane, save_network, write_sane_card
from hf_sane.probing._probes import RidgeProbe
from hf_sane.records._errors import InvalidFileError
from hf_sane.records._manifests import MANIFEST, Manifest
from hf_sane.records._outputs import check_finished
from hf_sane.sampling._export import Provenance


@pytest.fixture(params=WRITERS)
def save(request):
    return WRITERS[request.param]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_saved_is_finished_and_everyone_may_read_it(save, tmp_path):
    save(tmp_path / "new/out")
    manifest = check_finished(tmp_path / "new/out", all_digests=True)
    assert manifest is not None
    assert {*manifest.files, MANIFEST} == contents(tmp_path / "new/out").keys()
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert len(modes) == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    for name in manifest.files:
        assert b"hf_sane-partial" not in (tmp_path / "new/out" / name).read_bytes()


@pytest.mark.parametrize("name", ["README.md", "config.json", "data/train.parquet"])
def test_a_strangers_folder_is_refused_and_stays_as_it_is(save, name, tmp_path):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("theirs")
    with pytest.raises(FileExistsError, match="not ours to replace"):
        save(out)
    assert contents(tmp_path) == {f"out/{name}": b"theirs"}


def test_an_exception_in_the_middle_leaves_what_was_there(save, tmp_path, monkeypatch):
    def stop(*arguments, **settings):
        raise KeyboardInterrupt

    for before in ({}, None):
        if before is None:
            save(tmp_path / "out")
            before = contents(tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr(Manifest, "save", stop)
            with pytest.raises(KeyboardInterrupt):
                save(tmp_path / "out")
        assert contents(tmp_path) == before


def test_saving_again_replaces_what_nobody_changed_and_nothing_else(save, tmp_path):
    out = tmp_path / "out"
    save(out)
    first = contents(out)
    save(out)
    assert contents(out).keys() == first.keys()
    assert all(content == first[name] for name, content in contents(out).items() if name.endswith(".safetensors"))
    for name in (*(["README.md"] if (out / "README.md").exists() else []), "notes.txt"):
        (out / name).write_text("edited")
        with pytest.raises(FileExistsError, match=f"files that were added or changed since .*{name}"):
            save(out)
        assert (out / name).read_text() == "edited"


def test_an_artefact_of_another_kind_is_not_replaced(tmp_path):
    probe(tmp_path / "probe")
    WRITERS["save_network"](tmp_path / "network")
    with pytest.raises(FileExistsError, match="holds a finished ridge probe, not ours to replace"):
        WRITERS["save_network"](tmp_path / "probe")
    with pytest.raises(FileExistsError, match="holds a finished network, not ours to replace"):
        adapter(tmp_path / "network")


def test_a_network_that_is_saved_again_keeps_its_provenance(tmp_path):
    WRITERS["save_network"](tmp_path)
    save_network(tmp_path, network(), RECORD)
    assert Provenance.load(tmp_path) == PROVENANCE
    assert "| sane model | org/sane |" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("writer", "load", "name"),
    [
        ("save_sane", load_sane, "preprocessor_config.json"),
        ("save_sane", load_sane, "model.safetensors"),
        ("save_network", Provenance.load, "provenance.json"),
        ("RidgeProbe.save_pretrained", RidgeProbe.from_pretrained, "probe.safetensors"),
        ("save_adapter", read_adapter_config, "adapter_config.json"),
        ("save_adapter", lambda folder: load_adapter(network(), folder), "adapter_model.safetensors"),
    ],
)
def test_loaders_refuse_what_is_not_as_it_was_written(writer, load, name, tmp_path):
    WRITERS[writer](tmp_path)
    load(tmp_path)
    whole = (tmp_path / name).read_bytes()
    for changed, expected in ((whole[:-1], r"bytes, got [\d,]+ bytes"), (whole[:-1] + b"?", "the content that")):
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(InvalidFileError, match=f"{name}: expected .*{expected}"):
            load(tmp_path)


@pytest.mark.parametrize("kind", ["sane", "adapter"])
def test_a_card_is_added_to_a_finished_folder_but_never_replaces_an_edited_one(kind, tmp_path):
    if kind == "sane":
        sane(tmp_path)
        write = write_sane_card
    else:
        network_adapter(tmp_path)

        def write(folder, **settings):
            write_adapter_card(folder, cnn_digits(), **settings)

    write(tmp_path, title="Another title")
    assert "# Another title" in (tmp_path / "README.md").read_text()
    manifest = Manifest.load(tmp_path)
    assert manifest is not None
    assert manifest.strangers(tmp_path) == []
    for foreign in (True, False):
        if foreign:
            (tmp_path / "README.md").write_text("# Mine\n")
        else:
            os.remove(tmp_path / MANIFEST)
        with pytest.raises(FileExistsError, match=r"README\.md was written or edited by hand"):
            write(tmp_path)
        assert (tmp_path / "README.md").read_text() == "# Mine\n"
    os.remove(tmp_path / "README.md")
    write(tmp_path)
    assert (tmp_path / "README.md").exists()
