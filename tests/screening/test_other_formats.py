"""GGUF, ONNX and fused experts: every tensor has its line, and the numbers are those of the values."""

import gguf
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

import hf_sane
from hf_sane.screening import _other_formats
from hf_sane.screening._statistics import tensor_statistics


def heavy(*shape: int, seed: int = 0) -> np.ndarray:
    """Values with the tail of trained weights, no initialisation's."""
    generator = np.random.default_rng(seed)
    return (generator.standard_normal(shape) * (1 + generator.random((*shape[:-1], 1)))).astype(np.float32)


KINDS = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_0": gguf.GGMLQuantizationType.Q4_0}


def write_gguf(path, tensors, quantised, words=2):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("a small one")
    writer.add_array("tokenizer.ggml.tokens", [f"word {i}" for i in range(words)])
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    for name, (array, kind) in quantised.items():
        writer.add_tensor(name, gguf.quants.quantize(array, KINDS[kind]), raw_dtype=KINDS[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_read_by_its_header_and_its_values(tmp_path):
    plain = {"token_embd.weight": heavy(40, 64), "output_norm.weight": np.ones(64, np.float16)}
    packed = {
        "blk.0.attn_q.weight": (heavy(96, 64, seed=1), "q8_0"),
        "blk.0.up.weight": (heavy(64, 32, seed=2), "q4_0"),
    }
    write_gguf(tmp_path / "model.gguf", plain, packed)
    (scan,) = hf_sane.scan(tmp_path / "model.gguf").scans
    assert scan.format == "a GGUF file (llama: 1 F32, 1 F16, 1 Q8_0, 1 Q4_0)"
    assert scan.metadata["general.name"] == "a small one"
    assert "tokenizer.ggml.tokens" not in scan.metadata
    found = {x.name: x for x in scan.tensors}
    assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
        "token_embd.weight": ((40, 64), "float32"),
        "output_norm.weight": ((64,), "float16"),
        "blk.0.attn_q.weight": ((96, 64), "q8_0"),
        "blk.0.up.weight": ((64, 32), "q4_0"),
    }
    for name, (array, kind) in packed.items():
        stored = gguf.quants.dequantize(gguf.quants.quantize(array, KINDS[kind]), KINDS[kind])
        assert found[name].std == pytest.approx(stored.std(), rel=1e-5)
        assert found[name].num_read == array.size
    assert found["token_embd.weight"].std == pytest.approx(plain["token_embd.weight"].std(), rel=1e-5)
    assert scan.findings == ()


def test_a_sample_of_quantised_values_keeps_to_its_budget(tmp_path):
    array = heavy(2000, 1024)
    write_gguf(tmp_path / "model.gguf", {}, {"w.weight": (array, "q4_0")})
    (scan,) = hf_sane.scan(tmp_path / "model.gguf", budget="10%").scans
    (found,) = scan.tensors
    assert scan.bytes_read == pytest.approx(0.1 * scan.num_bytes, rel=0.05)
    assert scan.bytes_read % 18 == 0
    assert found.num_read == scan.bytes_read // 18 * 32
    assert abs(found.std - array.std()) < 5 * found.std_error < 0.2


@pytest.mark.parametrize("size", [24, 200, 3000], ids=lambda size: f"{size} bytes")
def test_a_gguf_file_that_is_cut_off_is_unreadable(size, tmp_path):
    write_gguf(tmp_path / "whole.gguf", {"w": heavy(40, 64)}, {})
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "whole.gguf").read_bytes()[:size])
    (scan,) = hf_sane.scan(tmp_path / "cut.gguf").scans
    assert [(x.rule, x.severity) for x in scan.findings] == [("unreadable", "error")]


def onnx_model(**arrays: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, producer_name="tester", producer_version="3")


def test_values_beside_an_onnx_file_that_are_cut_off_are_an_error_in_a_folder_too(tmp_path):
    onnx.save(onnx_model(w=heavy(60, 50)), tmp_path / "x.onnx", save_as_external_data=True, location="v")
    (tmp_path / "v").write_bytes(bytes(100))
    result = hf_sane.scan(tmp_path)
    (found,) = [x for _, x in result.findings if x.severity == "error"]
    assert (found.rule, found.message) == ("unreadable", "v: expected a file of at least 12,000 bytes, got 100 bytes")
    assert result.exit_code == 1


@pytest.mark.parametrize("external", [False, True], ids=["inside", "beside"])
def test_the_initialisers_of_an_onnx_file_are_its_tensors(external, tmp_path):
    weight, broken = heavy(60, 50), np.full((4,), np.nan, np.float32)
    options = {"save_as_external_data": True, "location": "values", "size_threshold": 0} if external else {}
    onnx.save(onnx_model(weight=weight, broken=broken), tmp_path / "model.onnx", **options)
    (scan,) = hf_sane.scan(tmp_path / "model.onnx").scans
    assert scan.format == "an ONNX file"
    assert scan.metadata["producer"] == "tester 3"
    assert [x.row() for x in scan.tensors] == [
        tensor_statistics(name, torch.from_numpy(x)).row() for name, x in (("weight", weight), ("broken", broken))
    ]
    assert [(x.rule, x.tensors) for x in scan.findings] == [("nan", ("broken",))]


def graph_of(nodes, weights=(), name="g", inputs=("x",)):
    values = [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1]) for x in inputs]
    return helper.make_graph(
        nodes, name, values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])], list(weights)
    )


def test_constants_and_subgraphs_of_an_onnx_file_are_read_too(tmp_path, local_hub):
    """Weights in nodes, in branches that use the same names, in loops inside these, and in functions."""
    values = {name: heavy(60, 50, seed=seed) for seed, name in enumerate(["top", "then", "loop", "inner", "function"])}
    tensor = {name: numpy_helper.from_array(array, "w") for name, array in values.items()}
    broken = numpy_helper.from_array(np.full((3, 400), np.nan, np.float32), "w")
    constants = {
        "shape": numpy_helper.from_array(np.arange(4), "s"),
        "number": numpy_helper.from_array(np.float32(np.inf), "n"),
        "codes": numpy_helper.from_array(np.ones((2, 3), np.int8), "c"),
        "short": numpy_helper.from_array(np.arange(3, dtype=np.float32), "f"),
    }
    body = graph_of([helper.make_node("Constant", [], ["y"], value=tensor["inner"])], [tensor["loop"]], inputs=())
    nodes = [
        helper.make_node("Constant", [], ["top"], value=tensor["top"]),
        *(helper.make_node("Constant", [], [name], value=value) for name, value in constants.items()),
        helper.make_node("Constant", [], ["list"], value_floats=[1.0, 2.0, 3.0]),
        helper.make_node("Constant", [], ["one"], value_float=1.0),
        helper.make_node(
            "If",
            ["x"],
            ["y"],
            name="if",
            then_branch=graph_of([], [tensor["then"]], inputs=()),
            else_branch=graph_of([helper.make_node("Loop", ["x"], ["z"], body=body)], [broken, broken], inputs=()),
        ),
    ]
    function = helper.make_function(
        "own", "f", [], ["y"], [helper.make_node("Constant", [], ["y"], value=tensor["function"])], []
    )
    model = helper.make_model(graph_of(nodes), functions=[function])
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("thin", TensorProto.FLOAT, [1], [1.0]),
        helper.make_tensor("i", TensorProto.INT64, [1], [3]),
        [9],
    )
    model.graph.sparse_initializer.append(sparse)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    for source in (tmp_path / "model.onnx", publish(local_hub, tmp_path)):
        (scan,) = hf_sane.scan(source).scans
        found = {x.name: x for x in scan.tensors}
        expected = {
            "top": "top",
            "if.then_branch.w": "then",
            "if.else_branch.z.body.w": "loop",
            "if.else_branch.z.body.y": "inner",
            "f.y": "function",
        }
        assert found.keys() == {*expected, "codes", "short", "if.else_branch.w", "if.else_branch.w#2"}
        for name, array in expected.items():
            assert found[name].row() == tensor_statistics(name, torch.from_numpy(values[array])).row()
        assert [x.tensors for x in scan.findings if x.rule == "nan"] == [("if.else_branch.w", "if.else_branch.w#2")]
        assert scan.skipped["list"] == "a list of 3 numbers in a node"
        assert scan.skipped["thin"] == "sparse values are not supported"
    inside = graph_of([])
    for _ in range(30):
        inside = graph_of([helper.make_node("Loop", ["x"], ["y"], body=inside)])
    (tmp_path / "deep.onnx").write_bytes(helper.make_model(inside).SerializeToString())
    (deep,) = hf_sane.scan(tmp_path / "deep.onnx").scans
    assert [(x.rule, x.severity) for x in deep.findings] == [("unreadable", "error")]


def publish(hub, folder, name="org/other"):
    """Put the files of a folder on the Hub."""
    hub.storage.add_files("models", name, {path.name: path.read_bytes() for path in folder.iterdir()})
    return name


@pytest.mark.parametrize(
    ("place", "bit", "told"),
    [
        ("version", 4, "expected a GGUF file of version 2 or 3, got version 19"),
        ("fields", 60, "expected a whole GGUF file, got a file that is damaged or cut off"),
        ("key", 60, "expected a whole GGUF file, got a file that is damaged or cut off"),
        ("items", 60, "expected a whole GGUF file, got a file that is damaged or cut off"),
        ("items", 0, "expected a whole GGUF file, got a file that is damaged or cut off"),
        ("kind", 6, "expected a whole GGUF file, got a file that is damaged or cut off"),
    ],
)
def test_one_wrong_bit_in_the_header_of_a_gguf_file_is_an_error_at_once(place, bit, told, tmp_path, local_hub):
    """The package `gguf` would count to 2^60, or complain about its own code."""
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_array("numbers", [1, 2, 3])
    writer.add_tensor("w", heavy(40, 64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = bytearray((tmp_path / "model.gguf").read_bytes())
    kind = content.index(b"numbers") + len(b"numbers")
    offset = {"version": 4, "fields": 16, "key": 24, "kind": kind, "items": kind + 8}[place]
    content[offset + bit // 8] ^= 1 << bit % 8
    (tmp_path / "model.gguf").write_bytes(content)
    for source in (tmp_path / "model.gguf", publish(local_hub, tmp_path)):
        (found,) = [x for x in hf_sane.scan(source).scans[0].findings if x.severity == "error"]
        assert (found.rule, found.message.rpartition(".gguf: ")[2]) == ("unreadable", told)


def test_of_a_gguf_file_on_the_hub_the_header_and_a_sample_are_read(tmp_path, local_hub, monkeypatch):
    monkeypatch.setattr(_other_formats, "HEADER_STEP", 2**12)  # so that the header does not fit into the first part
    packed = {f"blk.{i}.up.weight": (heavy(1000, 1024, seed=i), "q8_0") for i in range(3)}
    write_gguf(tmp_path / "model.gguf", {"output_norm.weight": np.ones(64, np.float16)}, packed, words=1500)
    size = (tmp_path / "model.gguf").stat().st_size
    (here,) = hf_sane.scan(tmp_path / "model.gguf", budget="5%").scans
    (there,) = hf_sane.scan(publish(local_hub, tmp_path), budget="5%").scans
    assert there.format == here.format == "a GGUF file (llama: 1 F16, 3 Q8_0)"
    assert there.metadata == here.metadata
    assert [x.row() for x in there.tensors] == [x.row() for x in here.tensors]
    assert [x.rule for x in there.findings] == ["licence"]
    assert here.bytes_read < there.bytes_downloaded == local_hub.sent("gguf$") < 0.2 * size
    assert len([x for x in local_hub.log if x.path.endswith("gguf")]) > 3


def test_the_parts_of_a_gguf_file_on_the_hub_are_one_checkpoint_and_others_are_chosen_by_name(tmp_path, local_hub):
    for number in (1, 2):
        write_gguf(tmp_path / f"tiny-Q8_0-0000{number}-of-00002.gguf", {f"{number}.weight": heavy(9, 32)}, {})
    write_gguf(tmp_path / "tiny-Q4_K_M.gguf", {"w.weight": heavy(5, 32)}, {})
    name = publish(local_hub, tmp_path)
    (parts,) = hf_sane.scan(name, variant="q8_0").scans
    assert [x.name for x in parts.tensors] == ["1.weight", "2.weight"]
    assert parts.format == "2 files, of which the first is a GGUF file (llama: 1 F32)"
    (one,) = hf_sane.scan(name, variant="Q4_K_M").scans
    assert [x.shape for x in one.tensors] == [(5, 32)]
    for wrong in (None, "Q2_K"):
        (none,) = hf_sane.scan(name, variant=wrong).scans
        assert "tiny-Q4_K_M.gguf, tiny-Q8_0-00001-of-00002.gguf; choose one by the end" in none.findings[0].message


@pytest.mark.parametrize("external", [False, True], ids=["inside", "beside"])
def test_of_an_onnx_file_on_the_hub_a_sample_is_read(external, tmp_path, local_hub):
    arrays = {f"w{i}": heavy(1000, 1000, seed=i) for i in range(2)} | {
        "steps": np.array([3, 4]),
        "half": np.ones(3, "e"),
    }
    options = {"save_as_external_data": True, "location": "values", "size_threshold": 99} if external else {}
    onnx.save(onnx_model(**arrays), tmp_path / "model.onnx", **options)
    (here,) = hf_sane.scan(tmp_path / "model.onnx", budget="5%").scans
    (there,) = hf_sane.scan(publish(local_hub, tmp_path), budget="5%").scans
    assert [x.row() for x in there.tensors] == [x.row() for x in here.tensors]
    assert {x.name: (x.shape, x.dtype) for x in there.tensors} == {
        **{f"w{i}": ((1000, 1000), "float32") for i in range(2)},
        "steps": ((2,), "int64"),
        "half": ((3,), "float16"),
    }
    assert 0 < here.bytes_read < 0.06 * here.num_bytes
    assert there.bytes_downloaded == local_hub.sent("(onnx|values)$") < here.bytes_read + 4 * 2**16


def test_values_in_lists_of_numbers_are_read_too(tmp_path):
    """Exporters before raw data, and those that write a model by hand."""
    values = heavy(60, 50)
    tensors = [
        helper.make_tensor("floats", TensorProto.FLOAT, values.shape, values.flatten()),
        helper.make_tensor("doubles", TensorProto.DOUBLE, values.shape, values.flatten()),
        helper.make_tensor("halves", TensorProto.FLOAT16, values.shape, values.astype("e").flatten()),
        helper.make_tensor("words", TensorProto.STRING, (1,), [b"a"]),
    ]
    model = onnx_model()
    model.graph.initializer.extend(tensors)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (scan,) = hf_sane.scan(tmp_path / "model.onnx").scans
    expected = {"floats": values, "doubles": values.astype("d"), "halves": values.astype("e")}
    assert {x.name: x.row() for x in scan.tensors} == {
        name: tensor_statistics(name, torch.from_numpy(x)).row() for name, x in expected.items()
    }
    assert scan.skipped["words"] == "1: values of type STRING are not supported"


def test_values_outside_the_folder_are_not_read(tmp_path, local_hub):
    (tmp_path / "secret").write_bytes(bytes(12000))
    (tmp_path / "repo").mkdir()
    onnx.save(onnx_model(w=heavy(60, 50)), tmp_path / "repo" / "x.onnx", save_as_external_data=True, location="secret")
    content = (tmp_path / "repo" / "x.onnx").read_bytes().replace(b"secret", b"../../")
    (tmp_path / "repo" / "x.onnx").write_bytes(content)
    for source in (tmp_path / "repo" / "x.onnx", publish(local_hub, tmp_path / "repo")):
        (scan,) = hf_sane.scan(source).scans
        assert "expected names of files next to it, got '../../'" in scan.findings[0].message


def test_a_damaged_onnx_file_and_one_without_its_values_are_unreadable(tmp_path):
    onnx.save(
        onnx_model(w=heavy(60, 50)), tmp_path / "x.onnx", save_as_external_data=True, location="v", size_threshold=0
    )
    (tmp_path / "v").unlink()
    onnx.save(onnx_model(w=heavy(60, 50)), tmp_path / "cut.onnx")
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "cut.onnx").read_bytes()[:500])
    for name in ("x.onnx", "cut.onnx"):
        (scan,) = hf_sane.scan(tmp_path / name).scans
        assert [(x.rule, x.severity) for x in scan.findings] == [("unreadable", "error")], name


@pytest.mark.parametrize("package", ["gguf", "onnx"])
def test_a_missing_package_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setattr(_other_formats, "find_spec", lambda name: None)
    content = {"gguf": b"GGUF" + bytes(60), "onnx": onnx_model(w=heavy(4, 5)).SerializeToString()}
    (tmp_path / "model").write_bytes(content[package])
    (scan,) = hf_sane.scan(tmp_path / "model").scans
    assert f"which requires the package {package}" in scan.findings[0].message
    assert scan.findings[0].remedy == "pip install 'hf_sane[scan]'"


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_experts_in_one_tensor_have_a_line_and_findings_each(suffix, tmp_path):
    experts = torch.from_numpy(heavy(6, 60, 50))
    experts[1], experts[3], experts[4] = 0, experts[2], 0.001 * experts[4]
    tensors = {"mlp.experts.gate_up_proj": experts, "mlp.router.weight": torch.from_numpy(heavy(6, 50, seed=3))}
    path = tmp_path / f"moe.{suffix}"
    save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
    (scan,) = hf_sane.scan(path).scans
    names = [f"mlp.experts.gate_up_proj[{index}]" for index in range(6)]
    assert {x.name: x.shape for x in scan.tensors} == {**dict.fromkeys(names, (60, 50)), "mlp.router.weight": (6, 50)}
    for index, name in enumerate(names):
        (found,) = [x for x in scan.tensors if x.name == name]
        assert found.row() == tensor_statistics(name, experts[index]).row()
    assert {(x.rule, x.tensors) for x in scan.findings if x.rule != "pickle"} == {
        ("constant", (names[1],)),
        ("duplicate", (names[2], names[3])),
        ("expert", (names[4],)),
    }


def test_experts_of_their_own_tensors_are_compared_with_their_siblings(tmp_path):
    tensors = {f"layers.0.experts.{i}.w1.weight": torch.from_numpy(heavy(60, 50, seed=i)) for i in range(5)}
    tensors["layers.0.experts.3.w1.weight"] *= 10
    tensors["layers.1.experts.0.conv.weight"] = torch.from_numpy(heavy(6, 5, 3))  # a kernel, not several experts
    save_file(tensors, tmp_path / "moe.safetensors")
    (scan,) = hf_sane.scan(tmp_path / "moe.safetensors").scans
    assert [(x.rule, x.tensors) for x in scan.findings] == [("expert", ("layers.0.experts.3.w1.weight",))]
    assert "10.1 times as large as the median of the 5 experts" in scan.findings[0].message
    assert {x.name for x in scan.tensors} == set(tensors)
