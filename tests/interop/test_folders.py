"""Folders in and out without another library: nothing is lost, and what is broken is said."""

import dataclasses
import hashlib
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from jgpt import models, sharding
from jgpt.config import MeshConfig, ModelConfig, RopeScaling
from jgpt.interop import weights as interop_weights
from jgpt.interop.configs import differences, read_config, write_config
from jgpt.interop.description import InteropError
from jgpt.interop.export import export
from jgpt.interop.families import FAMILIES
from jgpt.interop.folder import open_folder
from jgpt.interop.tensor_files import TensorFile
from jgpt.interop.transforms import SAME, TRANSPOSED, Fused, FusedPerHead
from jgpt.interop.weights import load, sources
from jgpt.trees import leaves_by_path
from tests.interop.tiny_folders import CONFIGS, edit_json, model, weights, write

NEWER = ("rope_parameters", "dtype", "layer_types", "num_local_experts")
OLDER = ("rope_theta", "rope_scaling", "torch_dtype", "rotary_pct", "rotary_emb_base",
         "partial_rotary_factor", "rope_local_base_freq", "sliding_window_pattern")  # fmt: skip


def everything(source):
    return source.read((slice(None),) * len(source.shape))


def load_here(path, **changes):
    """(model, variables) of a folder on one device, unrolled unless told otherwise."""
    folder = open_folder(path)
    config = dataclasses.replace(folder.model, **({"scan_layers": "off"} | changes))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = jax.tree.map(lambda _: here, models.abstract_params(config))
    return config, load(folder, config, places, here)


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_bit_equal_after_a_round_trip_in_shards(name, tmp_path):
    path = tmp_path / "model"
    values = write(path, name, ml_dtypes.bfloat16, largest_shard=8000)
    folder = open_folder(path)
    assert len({file.path for file in folder.files.values()}) > 2
    assert folder.family.name == name and not differences(folder.model, model(name))
    found = sources(folder, folder.model)
    assert found.keys() == values.keys()
    for place, value in values.items():
        read = everything(found[place])
        assert read.dtype == value.dtype
        np.testing.assert_array_equal(read.view(np.uint16), value.view(np.uint16), err_msg=place)


@pytest.mark.parametrize("name", CONFIGS)
def test_either_form_of_config_json_says_the_same(name):
    config = model(name)
    _, both = write_config(config, name)
    for absent in (NEWER, OLDER):
        if name == "mixtral":
            absent = tuple(n for n in absent if n != "num_local_experts")
        values = {key: value for key, value in both.items() if key not in absent}
        assert not differences(read_config(FAMILIES[name], values), config), absent


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling("linear", 4.0),
        RopeScaling("yarn", 4.0, 16, beta_fast=20.0, attention_factor=1.25),
        RopeScaling("llama3", 8.0, 16, low_frequency_factor=1.5),
        RopeScaling(
            "longrope", 4.0, 16, short_factors=(1.0,) * 4, long_factors=(1.0, 2.0, 3.0, 4.0)
        ),
    ],
    ids=lambda scaling: scaling.kind,
)
def test_rope_scaling_is_written_in_both_forms(scaling):
    config = model("llama", rope_scaling=scaling)
    family, both = write_config(config)
    for absent in (NEWER, OLDER):
        values = {key: value for key, value in both.items() if key not in absent}
        assert not differences(read_config(family, values), config)


def test_a_model_no_family_has_is_refused_by_name():
    with pytest.raises(InteropError, match=r"position='alibi'"):
        write_config(ModelConfig(vocab_size=60, position="alibi"))
    with pytest.raises(InteropError, match="llama comes closest but cannot express"):
        write_config(model("gemma2"), "llama")
    with pytest.raises(InteropError, match=r"rope_scaling.kind='ntk'"):
        write_config(model("llama", rope_scaling=RopeScaling("ntk", 2.0)), "llama")


def test_unknown_scaling_is_refused():
    values = CONFIGS["phi3"] | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    with pytest.raises(InteropError, match="'dynamic' is not supported"):
        read_config(FAMILIES["phi3"], values)


def test_an_activation_that_we_do_not_have_is_refused():
    with pytest.raises(InteropError, match="hidden_act 'relu'"):
        read_config(FAMILIES["llama"], CONFIGS["llama"] | {"hidden_act": "relu"})


@pytest.mark.parametrize(
    "transform, shapes",
    [
        (SAME, [(6, 4)]),
        (TRANSPOSED, [(6, 4)]),
        (Fused(TRANSPOSED, 0), [(4, 6), (4, 2), (4, 2)]),
        (Fused(SAME, 1), [(4, 6), (4, 6)]),
        (FusedPerHead(TRANSPOSED), [(4, 6), (4, 6), (4, 6)]),
        (FusedPerHead(SAME), [(6,), (6,), (6,)]),
    ],
)
def test_transforms_are_inverse_to_themselves(transform, shapes):
    config = ModelConfig(num_heads=3, hidden_size=6)
    generator = np.random.default_rng(0)
    parts = [generator.standard_normal(shape) for shape in shapes]
    theirs = transform.write(parts, config)
    assert theirs.shape == transform.shape(shapes, config)
    for number, part in enumerate(parts):
        np.testing.assert_array_equal(transform.read(theirs, number, shapes, config), part)


def test_other_programs_read_our_files(tmp_path):
    library = pytest.importorskip("safetensors.numpy", reason="the format's own library")
    values = write(tmp_path / "model", "llama")
    theirs = library.load_file(tmp_path / "model" / "model.safetensors")
    np.testing.assert_array_equal(theirs["lm_head.weight"].T, values["head/kernel"])
    library.save_file(theirs, tmp_path / "again.safetensors")
    again = TensorFile(tmp_path / "again.safetensors")
    assert again.entries.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(again.view(name), value)


def test_names_without_their_prefix_are_known(tmp_path):
    """The oldest GPT-2 files have `wte.weight`, and buffers that hold no weights."""
    library = pytest.importorskip("safetensors.numpy", reason="writes the altered file")
    values = write(tmp_path / "model", "gpt2")
    file = tmp_path / "model" / "model.safetensors"
    tensors = library.load_file(file)
    bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    library.save_file(bare | {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32)}, file)
    folder = open_folder(tmp_path / "model")
    found = sources(folder, folder.model)
    for place, value in values.items():
        np.testing.assert_array_equal(everything(found[place]), value)


def test_a_tied_head_stored_twice_must_be_the_embedding(tmp_path):
    library = pytest.importorskip("safetensors.numpy", reason="writes the altered file")
    write(tmp_path / "model", "mistral")
    file = tmp_path / "model" / "model.safetensors"
    tensors = library.load_file(file)
    table = tensors["model.embed_tokens.weight"]
    library.save_file(tensors | {"lm_head.weight": table.copy()}, file)
    folder = open_folder(tmp_path / "model")
    assert "head/kernel" not in sources(folder, folder.model)
    library.save_file(tensors | {"lm_head.weight": table + 1}, file)
    folder = open_folder(tmp_path / "model")
    with pytest.raises(InteropError, match=r"left over: lm_head\.weight"):
        sources(folder, folder.model)


# --- broken folders -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "model"
    write(path, "llama", largest_shard=8000)
    return path


def truncate(path):
    file = min(path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])


def cut_header(path):
    file = min(path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])


def damage_header(path):
    file = min(path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes().replace(b'"shape": [', b'"shape": [-', 1))


def pickles(path):
    for file in path.glob("*.safetensors*"):
        file.unlink()
    (path / "pytorch_model.bin").write_bytes(b"x")


def empty(path):
    for file in path.glob("*.safetensors*"):
        file.unlink()


def wrong_hash(path):
    file = min(path.glob("*.safetensors"))
    (path / f"{file.name}.sha256").write_text(f"{'0' * 64}  {file.name}\n")


def missing_from_index(path):
    index = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.weight"] = min(path.glob("*.safetensors")).name
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


BROKEN = {
    "missing shard": (lambda p: max(p.glob("*.safetensors")).unlink(), "shards are missing"),
    "truncated": (truncate, "is truncated: it has"),
    "truncated header": (cut_header, "is truncated within its header"),
    "not safetensors": (
        lambda p: min(p.glob("*.safetensors")).write_bytes(b"\xff" * 4000),
        "is not a safetensors file",
    ),
    "pointer": (
        lambda p: min(p.glob("*.safetensors")).write_text("version https://git-lfs.github.com\n"),
        "is a Git LFS pointer",
    ),
    "damaged header": (damage_header, "entry .* is damaged"),
    "pickle only": (pickles, "pickles only"),
    "no weights": (empty, "has neither model.safetensors"),
    "wrong hash": (wrong_hash, "another sha256"),
    "wrong index": (missing_from_index, "the index has model.norm.weight"),
    "no config": (lambda p: (p / "config.json").unlink(), "has no config.json"),
    "broken config": (lambda p: (p / "config.json").write_text("{"), "cannot be read"),
    "unknown model": (
        lambda p: edit_json(p / "config.json", model_type="mamba"),
        "model_type 'mamba'",
    ),
    "wrong shape": (
        lambda p: edit_json(p / "config.json", vocab_size=61),
        r"of another shape: .*\[60, 24\] instead of \[61, 24\]",
    ),
    "left over": (
        lambda p: edit_json(p / "config.json", num_hidden_layers=2),
        r"left over: .*and 4 more",
    ),
    "missing tensors": (
        lambda p: edit_json(p / "config.json", mlp_bias=True),
        r"missing: .*gate_proj.bias",
    ),
    "heads": (
        lambda p: edit_json(p / "config.json", num_attention_heads=5),
        "config.json of a llama model: model.num_kv_heads",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_in_one_line(name, whole, tmp_path):
    path = tmp_path / "broken"
    shutil.copytree(whole, path)
    BROKEN[name][0](path)
    with pytest.raises(InteropError, match=BROKEN[name][1]) as caught:
        folder = open_folder(path)
        sources(folder, folder.model)
    assert "\n" not in str(caught.value)


def test_a_right_hash_passes(whole, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(whole, path)
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        for file in path.glob("*.safetensors")
    ]
    (path / "SHA256SUMS").write_text("".join(lines))
    assert open_folder(path).files


def test_an_export_that_fails_leaves_nothing(tmp_path):
    config = model("llama")
    values = weights(config)
    values["final_norm/scale"] = np.zeros(3, np.float32)
    with pytest.raises(InteropError, match=r"model\.norm\.weight"):
        export(tmp_path / "out", config, values.__getitem__, dtype=np.dtype(np.float32))
    assert not list(tmp_path.iterdir())


def test_an_export_overwrites_nothing(tmp_path):
    write(tmp_path / "out", "llama")
    with pytest.raises(InteropError, match="exists"):
        write(tmp_path / "out", "llama")


# --- onto a mesh ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixtral", "gpt_neox", "phi3"])
@pytest.mark.parametrize("scan", ["on", "off"])
def test_a_mesh_gets_what_one_device_gets(name, scan, tmp_path):
    write(tmp_path / "model", name)
    config, alone = load_here(tmp_path / "model", scan_layers=scan)
    sizes = {"data": 1, "fsdp": 2, "tensor": 2, "expert": 2}
    if name == "gpt_neox":
        sizes = {"data": 4, "fsdp": 2}
    mesh = sharding.make_mesh(MeshConfig(**sizes))
    shapes = models.abstract_params(config)
    places = sharding.shardings(mesh, models.logical_axes(config), shapes)
    spread = load(open_folder(tmp_path / "model"), config, places, sharding.replicated(mesh))
    assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(spread))
    found = leaves_by_path(spread)
    for path, leaf in leaves_by_path(alone).items():
        np.testing.assert_array_equal(leaf, found[path], err_msg=path)


def test_only_the_wanted_slices_are_read_and_once(tmp_path, monkeypatch):
    write(tmp_path / "model", "mixtral")
    config, _ = load_here(tmp_path / "model")
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2, tensor=2, expert=2))
    places = sharding.shardings(mesh, models.logical_axes(config), models.abstract_params(config))
    largest, total = {}, {}
    read = interop_weights.Piece.read

    def counted(piece, index):
        found = read(piece, index)
        largest[piece.name] = max(largest.get(piece.name, 0), found.size)
        total[piece.name] = total.get(piece.name, 0) + found.size
        return found

    monkeypatch.setattr(interop_weights.Piece, "read", counted)
    folder = open_folder(tmp_path / "model")
    load(folder, config, places, sharding.replicated(mesh))
    whole = {name: np.prod(folder.entry(name).shape) for name in largest}
    assert total == whole
    expert = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    assert largest[expert] == whole[expert] / 4  # fsdp x tensor; the expert axis cuts the stack
    assert largest["model.embed_tokens.weight"] == whole["model.embed_tokens.weight"] / 4
