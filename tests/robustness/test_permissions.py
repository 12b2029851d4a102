"""What may not be read or written is said in one sentence with its remedy, and nothing is passed over in silence."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from program import run_command

import hf_sane
from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.hub._push import plan_push
from hf_sane.records._files import files_below
from hf_sane.tokenization._checkpoints import load_state_dict
from hf_sane.workflows.folders import networks_in
from hf_sane.workflows.shared import SourceSettings

REMEDY = "Permission denied; give this user access to it and to its folder (chmod, or ask its owner)"
NOBODY = 65534


@contextmanager
def as_a_user_without_rights():
    """Permissions mean nothing to root: be somebody else for a while."""
    if is_root := os.geteuid() == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture
def place():
    """A folder that every user may enter and write, with two networks in `nets`."""
    folder = Path(tempfile.mkdtemp(prefix="hf_sane permissions "))
    for name in ("one", "two"):
        build_model(cnn_digits()).save_pretrained(folder / "nets" / name)
        (folder / "nets" / name / "model.safetensors").chmod(0o644)
    folder.chmod(0o777)
    yield folder
    for path in (folder / "nets").rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(folder)


def refusal(*arguments):
    """What a verb says when it is refused, after the same verb has worked."""
    with as_a_user_without_rights():
        result = run_command(*arguments, exit_code=2)
    assert "Errno" not in result.output
    return result.output


READERS = {
    "model.safetensors": ("info", "analyze", "soup", "soup of a folder"),
    "config.json": ("soup", "soup of a folder", "push"),
    "": ("info", "analyze", "soup", "soup of a folder", "push"),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_says_which_file_and_what_to_do(name, place):
    nets, closed = place / "nets", place / "nets" / "one" / name
    verbs = {
        "info": ("info", nets / "one"),
        "analyze": ("analyze", nets / "one", "--num-bootstrap", 0),
        "soup": ("soup", nets / "one", nets / "two", "-o", place / "soup"),
        "soup of a folder": ("soup", nets, "-o", place / "soup"),
        "push": ("push", "samples", nets, "org/one", "--dry-run"),
    }
    for folder in nets.iterdir():
        (folder / "README.md").write_text("# one")
    for verb in READERS[name]:
        run_command(*verbs[verb])
        shutil.rmtree(place / "soup", ignore_errors=True)
    closed.chmod(0)
    for verb in READERS[name]:
        said = refusal(*verbs[verb])
        assert str(closed) in said, verb
        assert said.endswith(f"{REMEDY}\n"), verb
    assert not (place / "soup").exists()


def test_a_folder_that_may_not_be_listed_is_neither_empty_nor_left_out(place):
    nets = place / "nets"
    (nets / "one").chmod(0)
    with as_a_user_without_rights():
        for work in (
            lambda: load_state_dict(nets / "one"),
            lambda: list(files_below(nets)),
            lambda: plan_push("adapter", nets / "one", "org/one"),
        ):
            with pytest.raises(PermissionError, match="one"):
                work()
        assert networks_in(nets, SourceSettings()) == [nets / "one", nets / "two"]  # its reader explains it
    unreadable = []
    with as_a_user_without_rights():
        found = {path.relative_to(nets).as_posix() for path in files_below(nets, unreadable=unreadable)}
    assert found == {"two/config.json", "two/model.safetensors"}
    assert [error.filename for error in unreadable] == [str(nets / "one")]


@pytest.mark.parametrize("mode", [0, 0o644], ids=["closed", "listed but not entered"])
def test_an_import_lists_what_it_may_not_read_and_takes_the_rest(mode, place):
    arguments = ("--folder", place / "nets", "--token-dim", 73, "--split-shares", "1,0,0")
    run_command("zoo", "import", *arguments, "-o", place / "first")
    (place / "nets" / "one").chmod(mode)
    with as_a_user_without_rights():
        result = run_command("zoo", "import", *arguments, "-o", place / "zoo", "--json")
    assert len(hf_sane.Zoo.load(place / "zoo")) == 1
    report = (place / "zoo" / "data" / "import.json").read_text()
    assert '"failed"' in report
    assert REMEDY in report
    assert str(place) not in report  # it is published
    assert "one" in result.stdout


def test_a_place_that_may_not_be_written_is_named_before_the_work(place):
    (place / "nets").chmod(0o755)
    said = refusal("soup", place / "nets" / "one", place / "nets" / "two", "-o", place / "nets" / "soup")
    assert said.endswith("soup: Permission denied; make it writable, or choose another place\n")


def test_a_pipe_is_no_checkpoint_and_nobody_waits_for_it(place):
    os.mkfifo(place / "nets" / "pipe.safetensors")
    assert "expected safetensors, a shard index, or a file of torch.save, got a folder, pipe or device" in refusal(
        "info", place / "nets" / "pipe.safetensors"
    )
    run_command(
        *("zoo", "import", "--folder", place / "nets", "-o", place / "zoo", "--token-dim", 73),
        *("--split-shares", "1,0,0"),
    )
    assert len(hf_sane.Zoo.load(place / "zoo")) == 2
