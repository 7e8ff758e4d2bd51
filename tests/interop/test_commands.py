"""From a folder to a run, from the run to a folder: the commands, and training in between."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jgpt import convert, models
from jgpt.config import Config, ConfigError, InitConfig, ModelConfig, from_config_dict
from jgpt.generate import load_model
from jgpt.interop.configs import read_config
from jgpt.interop.export import export
from jgpt.interop.families import FAMILIES
from jgpt.interop.folder import open_folder
from jgpt.interop.start import own_computation, prepare
from jgpt.interop.weights import sources
from jgpt.training import loop
from jgpt.training.checkpoints import restore_params
from jgpt.training.setup import set_up
from jgpt.training.state_files import CheckpointError
from jgpt.training.workdir import Workdir
from tests.interop import tiny_folders

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
RUN = {
    "model": {"moe": {"dispatch": "dense"}, "scan_layers": "on"},
    "data": {
        "microworld_documents": 100,
        "validation_fraction": 0.05,
        "validation_documents": 4,
        "sequence_length": 32,
        "batch_size": 8,
        "virtual_shards": 8,
        "shuffle_buffer": 64,
    },
    "train": {"steps": 2, "log_every": 1, "eval_every": 0, "sample_every": 0},
    "optimizer": {"warmup_steps": 0, "learning_rate": 1e-2},
    "checkpoint": {"every": 1},
    "sample": {"final_samples": 0},
}


def tokenizer_files() -> dict[str, bytes]:
    library = pytest.importorskip("tokenizers", reason="makes the folder's tokenizer")
    bytes_of_text = library.pre_tokenizers.ByteLevel
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = bytes_of_text(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=[*SPECIAL.values()],
        initial_alphabet=bytes_of_text.alphabet(),
    )
    tokenizer.train_from_iterator(["むかしむかし、あるところに"], trainer)
    config = json.dumps(SPECIAL).encode()
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": config}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Mixtral with more rows than its tokenizer has ids, in several files."""
    path = tmp_path_factory.mktemp("folder") / "model"
    with pytest.MonkeyPatch.context() as patch:
        settings = tiny_folders.CONFIGS["mixtral"] | {"vocab_size": 304}
        patch.setitem(tiny_folders.CONFIGS, "mixtral", settings)
        extra = {"bos_token_id": 0, "eos_token_id": 1}
        options = {"files": tokenizer_files(), "extra": extra, "largest_shard": 30_000}
        tiny_folders.write(path, "mixtral", **options)
    return path


@pytest.fixture(scope="module")
def converted(folder, tmp_path_factory):
    """A workdir made by from_hf."""
    path = tmp_path_factory.mktemp("converted") / "run"
    assert convert.main(["from_hf", f"--folder={folder}", f"--workdir={path}"]) == 0
    return path


def tensors(path):
    opened = open_folder(path)
    return {name: np.array(opened.view(name)) for name in opened.files}


def test_a_folder_becomes_a_run_and_the_same_folder_again(folder, converted, tmp_path):
    model = load_model(converted)
    found = sources(open_folder(folder), model.config)
    table = model.variables["params"]["embedding"]["table"]
    np.testing.assert_array_equal(table, found["embedding/table"].read((slice(None),) * 2))
    assert model.tokenizer.decode(model.tokenizer.encode("むかし、山に")) == "むかし、山に"
    again = tmp_path / "again"
    assert convert.main(["to_hf", f"--workdir={converted}", f"--folder={again}"]) == 0
    before, after = tensors(folder), tensors(again)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    same = json.loads((again / "config.json").read_text())
    assert same == json.loads((folder / "config.json").read_text())


def test_another_type_is_written_when_told(folder, converted, tmp_path):
    out = tmp_path / "half"
    arguments = [f"--workdir={converted}", f"--folder={out}", "--dtype=float16"]
    assert convert.main(["to_hf", *arguments, "--max_shard_bytes=2e4"]) == 0
    values, rounded = tensors(folder), tensors(out)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float16"
    for name, value in values.items():
        np.testing.assert_array_equal(value.astype(np.float16), rounded[name])


def test_an_encoder_becomes_a_run_with_an_objective_of_its_own(tmp_path):
    sizes = {"vocab_size": 60, "num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 40}
    settings = sizes | {"num_attention_heads": 3, "max_position_embeddings": 32}
    config = read_config(FAMILIES["bert"], settings | {"architectures": ["BertForMaskedLM"]})
    values = tiny_folders.weights(config)
    export(tmp_path / "bert", config, values.__getitem__, dtype=np.dtype(np.float32))
    path = tmp_path / "run"
    assert convert.main(["from_hf", f"--folder={tmp_path}/bert", f"--workdir={path}"]) == 0
    restored = restore_params(path)
    assert restored.config.objective.name == "mlm"
    table = restored.variables["params"]["embedding"]["table"]
    np.testing.assert_array_equal(table, values["embedding/table"])
    assert convert.main(["to_hf", f"--workdir={path}", f"--folder={tmp_path}/again"]) == 0
    before, after = tensors(tmp_path / "bert"), tensors(tmp_path / "again")
    assert all((before[name] == after[name]).all() for name in before.keys() | after.keys())


@pytest.mark.slow
def test_training_goes_on_from_a_folder_and_is_exported(folder, tmp_path):
    """A run that has begun needs the folder no more."""
    workdir = tmp_path / "run"
    values = RUN | {"init": {"hf_folder": str(folder)}}
    values["data"] = values["data"] | {"cache": str(tmp_path / "cache")}
    config, start = prepare(from_config_dict(values), workdir)
    loop.run(config, workdir, start)

    out = tmp_path / "out"
    assert convert.main(["to_hf", f"--workdir={workdir}", f"--folder={out}"]) == 0
    before, after = tensors(folder), tensors(out)
    assert before.keys() == after.keys()
    changes = [np.abs(before[name] - after[name]).max() for name in before]
    assert 0 < max(changes) < 0.1
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()

    folder_gone = from_config_dict(RUN | {"init": {"hf_folder": str(tmp_path / "gone")}})
    config, _ = prepare(folder_gone, workdir)
    assert config.model.vocab_size == 304


def first_state(init, workdir, **changes):
    """The state of a run before its first step."""
    config, start = prepare(from_config_dict(RUN | {"init": init} | changes), workdir)
    files = Workdir(workdir)
    files.open()
    parts = set_up(config, files, start)
    parts.checkpoints.close()
    return config.model, parts.init()


@pytest.mark.parametrize("source", ["hf_folder", "workdir"])
@pytest.mark.parametrize("scan", ["on", "off"])
def test_the_first_step_starts_from_the_weights(source, scan, folder, converted, tmp_path):
    """The state holds them, averaged weights too, and fresh moments of the optimizer."""
    model, state = first_state(
        {source: str({"hf_folder": folder, "workdir": converted}[source])},
        tmp_path / "run",
        mesh={"fsdp": 4, "data": 2},
        optimizer={"ema_decay": 0.9},
        model={"scan_layers": scan},
    )
    found = sources(open_folder(folder), model)
    expected = found["layers_1/moe/up/kernel"].read((slice(None),) * 3)
    for params in (state.params, state.ema):
        if scan == "on":
            kernel = params["layers"]["block_0"]["moe"]["up"]["kernel"]
            np.testing.assert_array_equal(kernel[1], expected)
        else:
            kernel = params["layers_1"]["moe"]["up"]["kernel"]
            np.testing.assert_array_equal(kernel, expected)
        assert not kernel.is_fully_replicated
    assert int(state.step) == 0
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim > 1]
    assert moments and all(not np.asarray(x).any() for x in moments)


# --- what is refused ------------------------------------------------------------------------------


def test_a_converted_model_is_no_run_to_resume(converted):
    with pytest.raises(ConfigError, match=r"--config\.init\.workdir="):
        prepare(Config(), converted)


def test_another_architecture_than_the_weights_is_refused():
    found = tiny_folders.model("mixtral")
    with pytest.raises(ConfigError, match=r"model\.num_heads is 8, but .* has 6"):
        own_computation(ModelConfig(num_heads=8), found, "init.hf_folder")
    asked = dataclasses.replace(found, moe=dataclasses.replace(found.moe, top_k=1))
    with pytest.raises(ConfigError, match=r"model\.moe\.top_k is 1"):
        own_computation(asked, found, "init.hf_folder")
    moe = dataclasses.replace(found.moe, dispatch="dense")
    asked = dataclasses.replace(found, moe=moe, dtype="bfloat16", max_length=9)
    assert own_computation(asked, found, "init.hf_folder") == asked


def test_two_starts_are_refused():
    with pytest.raises(ConfigError, match="choose one"):
        InitConfig(hf_folder="a", workdir="b")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        prepare(Config(init=InitConfig(workdir="/nowhere")), Path("/nowhere/run"))


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["inspect", "--folder=/nowhere"], "there is no folder"),
        (["from_hf", "--folder={folder}", "--workdir={folder}"], "exists"),
        (["to_hf", "--workdir=/nowhere", "--folder=/tmp/x"], "there is no checkpoint"),
        (
            ["to_hf", "--workdir={converted}", "--folder={tmp}/out", "--family=llama"],
            "llama comes closest but cannot express",
        ),
        (["to_hf", "--workdir={converted}", "--folder={tmp}/out", "--family=x"], "not known"),
    ],
)
def test_a_wrong_command_says_so_in_one_line(arguments, said, folder, converted, tmp_path, capsys):
    names = {"folder": folder, "converted": converted, "tmp": tmp_path}
    assert convert.main([a.format(**names) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert not list(tmp_path.iterdir())


def test_inspect_shows_what_is_in_a_folder(folder, capsys):
    assert convert.main(["inspect", f"--folder={folder}", "--tensors"]) == 0
    shown = capsys.readouterr().out
    model = open_folder(folder).model
    assert f"{models.count_params(model)[0]:,} parameters, float32" in shown
    assert "MixtralForCausalLM" in shown and "model.num_heads = 6" in shown
    assert "model.layers.2.block_sparse_moe.experts.3.w2.weight  [24, 40]  float32" in shown
