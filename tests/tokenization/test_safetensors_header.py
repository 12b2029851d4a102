"""Headers of safetensors files: refused where `safetensors` refuses them, over the network, too."""

import json

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hf_sane.records._errors import InvalidFileError
from hf_sane.tokenization._headers import read_meta_state_dict
from hf_sane.tokenization._safetensors_header import fetch_header, read_header

ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
TWO = {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}


def file_of(header, data=b"\0" * 4, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def accepts(path):
    try:
        with safe_open(path, framework="pt") as file:
            list(file.keys())
    except SafetensorError:
        return False
    return True


REFUSED = {
    "no bytes": b"",
    "seven bytes": b"\0" * 7,
    "no JSON": file_of(b"{"),
    "a list": file_of([]),
    "nothing": file_of(b""),
    "a byte order mark": file_of(b"\xef\xbb\xbf{}"),
    "no UTF-8": file_of(b'{"\xff":1}'),
    "half a surrogate pair": file_of(b'{"\\ud800":' + json.dumps(ONE).encode() + b"}"),
    "a control character": file_of(b'{"\x01":' + json.dumps(ONE).encode() + b"}"),
    "trailing bytes": file_of({"a": ONE}, b"\0" * 5),
    "truncated": file_of({"a": ONE}, b"\0" * 3),
    "trailing bytes without a tensor": file_of({}, b"\0"),
    "a header beyond the file": file_of({"a": ONE}, length=1000),
    "a header of 2**63 bytes": file_of({"a": ONE}, length=2**63),
    "a header of 101 MB": file_of({"a": ONE}, length=101_000_000),
    "a gap": file_of({"a": ONE, "b": {**TWO, "data_offsets": [5, 9]}}, b"\0" * 9),
    "an overlap": file_of({"a": ONE, "b": {**TWO, "data_offsets": [0, 4]}}),
    "backwards": file_of({"a": {**ONE, "data_offsets": [4, 0]}}),
    "a gap at the start": file_of({"a": TWO}, b"\0" * 8),
    "three offsets": file_of({"a": {**ONE, "data_offsets": [0, 4, 8]}}),
    "negative": file_of({"a": {**ONE, "shape": [1, -1]}}),
    "a fraction": file_of({"a": {**ONE, "shape": [1.0]}}),
    "minus zero": file_of(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-0,4]}}'),
    "true": file_of({"a": {**ONE, "shape": [True]}}),
    "text": file_of({"a": {**ONE, "shape": ["1"]}}),
    "a size that does not fit": file_of({"a": {**ONE, "shape": [2]}}),
    "2**60 elements": file_of({"a": {**ONE, "shape": [2**60]}}),
    "an overflow": file_of({"a": {**ONE, "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}}, b""),
    "an overflow of bytes": file_of({"a": {**ONE, "shape": [2**62]}}),
    "no shape": file_of({"a": {"dtype": "F32", "data_offsets": [0, 4]}}),
    "no dtype": file_of({"a": {**ONE, "dtype": None}}),
    "no object": file_of({"a": 3}),
    "metadata of numbers": file_of({"__metadata__": {"a": 1}, "a": ONE}),
    "metadata as a list": file_of({"__metadata__": [], "a": ONE}),
    "metadata twice": file_of(b'{"__metadata__":{},"__metadata__":{},"a":' + json.dumps(ONE).encode() + b"}"),
    "a field twice": file_of(b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
    "NaN": file_of(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":NaN}}'),
    "1e400": file_of(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1e400}}'),
    "126 brackets": file_of(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":' + b"[" * 126 + b"]" * 126 + b"}}"
    ),
    "100,000 brackets": file_of(b"[" * 100_000),
}
ACCEPTED = {
    "no tensor": file_of({}, b""),
    "one": file_of({"a": ONE}),
    "another order": file_of({"b": TWO, "a": ONE}, b"\0" * 8),
    "spaces around": file_of(b"  " + json.dumps({"a": ONE}).encode() + b" \n"),
    "metadata": file_of({"__metadata__": {"format": "pt"}, "a": ONE}),
    "metadata of null": file_of({"__metadata__": None, "a": ONE}),
    "a foreign field": file_of({"a": {**ONE, "x": [{}, 1.5]}}),
    "a large foreign number": file_of({"a": {**ONE, "x": 10**300}}),
    "125 brackets": file_of(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":' + b"[" * 125 + b"]" * 125 + b"}}"
    ),
    "empty tensors": file_of({"a": ONE, "e": {**ONE, "shape": [0, 3], "data_offsets": [0, 0]}}),
    "an empty tensor of many columns": file_of({"e": {**ONE, "shape": [0, 2**62], "data_offsets": [0, 0]}}, b""),
    "a scalar": file_of({"": {**ONE, "shape": []}}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_safetensors_refuses_is_refused(name, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(REFUSED[name])
    assert not accepts(path)
    with pytest.raises(InvalidFileError) as caught:
        read_header(path)
    assert caught.value.file == str(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_safetensors_accepts_is_accepted(name, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(ACCEPTED[name])
    found = read_header(path)
    with safe_open(path, framework="pt") as file:
        assert {key: file.get_slice(key).get_shape() for key in file.keys()} == {  # noqa: SIM118 (not a mapping)
            key: list(tensor.shape) for key, tensor in found.items()
        }


def test_a_tensor_that_is_there_twice_is_refused(tmp_path):
    """safetensors takes the last one, other readers the first; the format forbids it."""
    path = tmp_path / "model.safetensors"
    one = json.dumps(ONE).encode()
    path.write_bytes(file_of(b'{"a":' + one + b',"a":' + one + b"}"))
    with pytest.raises(InvalidFileError, match="'a' occurs twice"):
        read_header(path)


@pytest.mark.parametrize("num_tensors", [0, 1, 3000])
def test_a_file_on_the_hub_is_read_like_one_on_the_disk(num_tensors, tmp_path, local_hub):
    """3,000 names take more than the first request brings."""
    content = save({f"layer.{'x' * 20}.{index}": torch.zeros(2, index % 3) for index in range(num_tensors)})
    (tmp_path / "model.safetensors").write_bytes(content)
    local_hub.storage.add_files("models", "someone/network", {"a b/model.safetensors": content})
    found = fetch_header("someone/network", "a b/model.safetensors")
    here = read_header(tmp_path / "model.safetensors")
    assert len(found) == num_tensors
    assert {name: (t.shape, t.dtype) for name, t in found.items()} == {n: (t.shape, t.dtype) for n, t in here.items()}


@pytest.mark.parametrize("name", ["no bytes", "trailing bytes", "truncated", "negative", "a header of 2**63 bytes"])
def test_a_damaged_file_on_the_hub_is_refused(name, local_hub):
    local_hub.storage.add_files("models", "someone/network", {"model.safetensors": REFUSED[name]})
    with pytest.raises(InvalidFileError, match="^someone/network/model.safetensors"):
        read_meta_state_dict("someone/network")
