"""Adapters in peft's format and in the folders of runs, without the other library.

Nothing is lost on the way to a folder and back; what is written is what its words say; what cannot
be said is refused in one line. `tests/parity/test_peft_files.py` compares with peft itself.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import adapters as command
from jgpt import models, peft
from jgpt.config import AdaLoraConfig, Config, ConfigError, InitConfig, PeftConfig, PromptConfig
from jgpt.interop import adapted, fingerprint
from jgpt.interop.adapter_sources import open_source
from jgpt.interop.parity import on_one_device
from jgpt.interop.peft_format import CONFIG_FILE, WEIGHTS_FILE
from jgpt.interop.peft_format_read import build, open_adapters, read
from jgpt.interop.peft_format_write import write_folder
from jgpt.interop.start import prepare
from jgpt.interop.tensor_files import Shape, write_file
from jgpt.peft import compose
from jgpt.peft.adapters import flat
from jgpt.trees import map_with_path
from tests.interop import tiny_folders

TOKENS = np.random.default_rng(0).integers(1, 60, (2, 7), np.int32)
LORA = PeftConfig(
    method="lora",
    targets=("(query|value|down)$",),
    rank=4,
    alpha=6.0,
    rank_pattern=("layers_1/.*query=2",),
    alpha_pattern=("down$=9",),
)
SHORT = PromptConfig(length=3)
CASES = {
    "lora": ("llama", dataclasses.replace(LORA, targets=("query$", "down$", "embedding"))),
    "rslora": ("llama", dataclasses.replace(LORA, scaling="sqrt_rank", bias=True)),
    "fused": ("phi3", dataclasses.replace(LORA, targets=("all-linear",))),
    "in_out": ("gpt2", LORA),
    "per_head": ("gpt_neox", LORA),
    "dora": ("phi3", PeftConfig(method="dora", targets=("(gate|up|output)$",), rank=2)),
    "adalora": (
        "llama",
        PeftConfig(method="adalora", rank=2, adalora=AdaLoraConfig(initial_rank=3)),
    ),
    "vera": ("llama", PeftConfig(method="vera", rank=5)),
    "ia3": ("gpt2", PeftConfig(method="ia3")),
    "p_tuning_v2": ("qwen3", PeftConfig(method="p_tuning_v2", prompt=SHORT)),
    "prompt": ("gemma2", PeftConfig(method="prompt_tuning", prompt=SHORT)),
}


def model_of(family, **changes):
    plain = {"dtype": "float32", "param_dtype": "float32", "scan_layers": "off"}
    return tiny_folders.model(family, **(plain | changes))


def pair_of(settings, model, seed=0):
    """A method with random leaves; its shapes need no parameters."""
    fitted = peft.make_peft(settings, model)
    generator = np.random.default_rng(seed)
    shapes = peft.abstract_adapters(fitted)

    def noise(path, leaf):
        return jnp.asarray(generator.standard_normal(leaf.shape), leaf.dtype)

    constants = {
        f"{path}/{name}": leaf.initializer(jax.random.key(seed), leaf.shape, jnp.float32)
        for path, leaves in fitted.leaves.items()
        for name, leaf in leaves.items()
        if not leaf.trained
    }
    stacked = peft.adapters.laid_out(fitted, peft.adapters.nested(constants))
    return fitted, peft.Adapters(map_with_path(noise, shapes.trained), stacked)


def updates(pair):
    return {path: np.asarray(f.product) for path, f in compose.factors(*pair).items()}


def error(found, expected):
    return float(abs(np.asarray(found) - expected).max() / abs(np.asarray(expected)).max())


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_lost_on_the_way_to_a_folder_and_back(case, tmp_path):
    family, settings = CASES[case]
    model = model_of(family)
    fitted, adapters = pair_of(settings, model)
    write_folder(tmp_path / "there", fitted, adapters, family=family)
    again, back = build(read(open_adapters(tmp_path / "there"), model, family), model)
    assert again.method is fitted.method
    if case in ("fused", "in_out", "per_head"):  # s of several sites becomes one
        found, expected = updates((again, back)), updates((fitted, adapters))
        assert found.keys() == expected.keys()
        assert max(error(found[path], expected[path]) for path in expected) < 1e-5
        return
    for before, after in zip(adapters, back, strict=True):
        before, after = dict(flat(before)), dict(flat(after))
        assert before.keys() == after.keys()
        for path, leaf in before.items():
            np.testing.assert_allclose(after[path], leaf, rtol=1e-5, atol=1e-6)


def test_scanned_layers_are_written_and_read_too(tmp_path):
    model = model_of("llama", scan_layers="on")
    pair = pair_of(LORA, model)
    write_folder(tmp_path / "there", *pair, family="llama")
    again = build(read(open_adapters(tmp_path / "there"), model, "llama"), model)
    found, expected = updates(again), updates(pair)
    assert found.keys() == expected.keys()
    assert max(error(found[path], expected[path]) for path in expected) < 1e-5


def test_a_fused_module_read_from_peft_is_written_with_its_own_rank(tmp_path):
    model = model_of("phi3")
    pair = pair_of(dataclasses.replace(LORA, targets=("attention/(query|key|value)$",)), model)
    first = write_folder(tmp_path / "a", *pair, family="phi3")
    again = build(read(open_adapters(tmp_path / "a"), model, "phi3"), model)
    assert first["r"] == 12  # three of rank 4, side by side
    one_a = {
        path: leaf
        if path.endswith("lora_b")
        else dict(flat(pair[1].trained))[path.replace("key", "query").replace("value", "query")]
        for path, leaf in flat(pair[1].trained)
        if "layers_1" not in path
    }
    config = dataclasses.replace(
        LORA, targets=("layers_[02]/attention/(query|key|value)$",), rank_pattern=()
    )
    fitted = peft.make_peft(config, model)
    constants = pair_of(config, model)[1].constants
    shared = peft.Adapters(peft.adapters.nested(one_a), constants)
    assert write_folder(tmp_path / "b", fitted, shared, family="phi3")["r"] == 4
    found = updates(build(read(open_adapters(tmp_path / "b"), model, "phi3"), model))
    expected = updates((fitted, shared))
    assert max(error(found[path], expected[path]) for path in expected) < 1e-5
    assert again[0].settings.rank == 4


def test_the_serving_form_is_plain_lora_of_one_rank(tmp_path):
    methods = ("llama", LORA), ("phi3", CASES["fused"][1]), CASES["adalora"], CASES["vera"]
    for number, (family, settings) in enumerate(methods):
        model = model_of(family)
        pair = pair_of(settings, model)
        path = tmp_path / str(number)
        config = write_folder(path, *pair, family=family, serving=True)
        folder = open_adapters(path)
        assert config["lora_alpha"] == config["r"]
        assert not config["rank_pattern"]
        assert not config["alpha_pattern"]
        ends = {name.rpartition("_")[2] for name in folder.tensors}
        assert ends == {"A.weight", "B.weight"}
        ranks = {x.shape[0] for name, x in folder.tensors.items() if name.endswith("A.weight")}
        assert ranks == {config["r"]}
        found, expected = updates(build(read(folder, model, family), model)), updates(pair)
        assert max(error(found[path], expected[path]) for path in expected) < 1e-5


def test_rows_that_adalora_cut_are_not_written(tmp_path):
    model = model_of("llama")
    fitted, adapters = pair_of(CASES["adalora"][1], model)
    path = "layers_1/attention/query/lora_e"
    leaves = dict(flat(adapters.trained))
    leaves[path] = leaves[path].at[1].set(0)
    leaves[path.replace("_1", "_0")] *= 0
    pair = (fitted, adapters._replace(trained=peft.adapters.nested(leaves)))
    config = write_folder(tmp_path / "a", *pair, family="llama")
    name = "model.layers.1.self_attn.q_proj.lora_E"
    assert config["rank_pattern"][name] == [True, True, False]
    assert len(open_adapters(tmp_path / "a").tensors[name]) == 2
    assert len(open_adapters(tmp_path / "a").tensors[name.replace("1", "0")]) == 1
    found = updates(build(read(open_adapters(tmp_path / "a"), model, "llama"), model))
    expected = updates(pair)
    for path in expected:
        np.testing.assert_allclose(found[path], expected[path], atol=1e-5)


@pytest.mark.parametrize(
    ("family", "settings", "options", "message"),
    [
        ("mixtral", PeftConfig(method="lora", targets=("moe/up$",)), {}, "experts lie in one"),
        ("llama", PeftConfig(method="pfeiffer"), {}, "peft has no method"),
        ("llama", PeftConfig(method="dora"), {"serving": True}, "DoRA"),
        ("llama", dataclasses.replace(LORA, bias=True), {"serving": True}, "biases"),
        ("llama", LORA, {"serving": True, "own": {"head/kernel": 0}}, "trained too"),
        ("llama", PeftConfig(method="pissa"), {}, "from their run"),
        ("gpt2", PeftConfig(method="vera", rank=3), {}, "fused"),
        ("gpt2", LORA, {"own": {"layers_0/attention/query/kernel": 0}}, "saves whole"),
        ("llama", LORA, {"family": "lama"}, "not known"),
    ],
)
def test_what_cannot_be_written_is_refused(family, settings, options, message, tmp_path):
    pair = pair_of(settings, model_of(family))
    with pytest.raises(ConfigError, match=message) as caught:
        write_folder(tmp_path / "x", *pair, **{"family": family, **options})
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def folder_of(path, config=None, **tensors):
    path.mkdir()
    least = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (path / CONFIG_FILE).write_text(json.dumps(least | (config or {})))
    arrays = {
        name.replace("__", "."): np.ones(shape, np.float32) for name, shape in tensors.items()
    }
    shapes = {name: Shape(x.shape, x.dtype) for name, x in arrays.items()}
    write_file(path / WEIGHTS_FILE, shapes, arrays.__getitem__, {})
    return path


QUERY = "base_model__model__model__layers__0__self_attn__q_proj__"


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"peft_type": "BOFT"}, {}, "peft_type 'BOFT'"),
        ({"bias": "all"}, {}, "bias='all'"),
        ({"target_parameters": ["x"]}, {}, "target_parameters"),
        ({}, {}, "no adapters"),
        ({}, {f"{QUERY}lora_A__weight": (2, 24)}, "no lora_B"),
        ({}, {f"{QUERY}lora_A__weight": (2, 23), f"{QUERY}lora_B__weight": (48, 2)}, "another"),
        ({}, {"base_model__model__model__x__lora_A__weight": (2, 24)}, "no module"),
        ({"peft_type": "VERA"}, {f"{QUERY}vera_lambda_d": (2,), f"{QUERY}vera_lambda_b": (48,)}, "save_projection"),  # noqa: E501
        ({"peft_type": "PREFIX_TUNING"}, {"prompt_embeddings": (3, 7)}, "belong to another"),
        ({"peft_type": "IA3"}, {f"{QUERY}ia3_l": (1, 24)}, "its input scaled"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(config, tensors, message, tmp_path):
    path = folder_of(tmp_path / "a", config, **tensors)
    with pytest.raises(ConfigError, match=message) as caught:
        read(open_adapters(path), model_of("llama"), "llama")
    assert "\n" not in str(caught.value)


def test_pickles_are_not_read(tmp_path):
    path = folder_of(tmp_path / "a")
    (path / WEIGHTS_FILE).rename(path / "adapter_model.bin")
    with pytest.raises(ConfigError, match="pickle"):
        open_adapters(path)


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path):
    tiny_folders.write(tmp_path / "base", "llama")
    return tmp_path / "base"


def logits(model, variables, apply=None):
    apply = apply or functools.partial(models.apply, model)
    return apply(variables, {"inputs": TOKENS})[0]


def test_the_same_weights_have_the_same_fingerprint_in_every_layout(base):
    model, variables = on_one_device(base)
    first = fingerprint.fingerprint(model, variables["params"])
    scanned = models.restack(variables["params"], model, scan=True)
    assert fingerprint.fingerprint(model, scanned) == first
    kernel = variables["params"]["layers_1"]["ffn"]["up"]["kernel"]
    variables["params"]["layers_1"]["ffn"]["up"]["kernel"] = kernel[::-1]
    assert fingerprint.fingerprint(model, variables["params"]) != first


def test_a_run_is_made_of_a_folder_and_merged_and_taken_apart(base, tmp_path, capsys):
    model, variables = on_one_device(base)
    own = {"final_norm/scale": 2 * variables["params"]["final_norm"]["scale"]}
    fitted, adapters = pair_of(LORA, model)
    write_folder(tmp_path / "a", fitted, adapters, own=own, base=str(base), family="llama")

    def go(*arguments):
        status = command.main([str(argument) for argument in arguments])
        assert status == 0, capsys.readouterr().err

    go("import", "--adapters", tmp_path / "a", "--workdir", tmp_path / "run")
    found = adapted.open_run(tmp_path / "run")
    expected = logits(found.config.model, found.variables, found.apply())
    plain = logits(model, variables)
    assert error(expected, plain) > 0.01
    assert error(logits(found.config.model, found.merged()), expected) < 1e-5

    go("merge", "--adapters", tmp_path / "a", "--folder", tmp_path / "merged")
    assert error(logits(*on_one_device(tmp_path / "merged")), expected) < 1e-5
    go("export", "--adapters", tmp_path / "run", "--folder", tmp_path / "b")
    source = open_source(tmp_path / "b", str(base))
    assert error(updates((source.peft, source.adapters))["layers_1/attention/query"],
                 updates((fitted, adapters))["layers_1/attention/query"]) < 1e-5  # fmt: skip
    assert source.own.keys() == own.keys()
    go("inspect", "--adapters", tmp_path / "run")
    shown = capsys.readouterr().out
    norm = np.linalg.norm(updates((fitted, adapters))["layers_2/ffn/down"])
    line = next(line for line in shown.splitlines() if line.startswith("layers_2/ffn/down"))
    assert float(line.split()[-1]) == pytest.approx(norm, rel=1e-3)


def test_adapters_are_added_up_and_taken_out_by_commands(base, tmp_path, capsys):
    model, variables = on_one_device(base)
    pairs = [pair_of(LORA, model, seed) for seed in (1, 2)]
    for name, pair in zip("ab", pairs, strict=True):
        write_folder(tmp_path / name, *pair, base=str(base), family="llama")
    both, merged, apart = (tmp_path / name for name in ("both", "merged", "apart"))
    ab = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert command.main(["compose", "--adapters", *ab, "--weights", "2", "-0.5", f"--folder={both}"]) == 0  # fmt: skip # noqa: E501
    source = open_source(both)
    found, (a, b) = updates((source.peft, source.adapters)), map(updates, pairs)
    assert max(error(found[path], 2 * a[path] - 0.5 * b[path]) for path in a) < 1e-5
    assert command.main(["merge", f"--adapters={both}", f"--folder={merged}"]) == 0
    assert error(logits(*on_one_device(merged)), logits(model, variables)) > 0.01
    arguments = [f"--adapters={both}", f"--base={merged}", f"--folder={apart}"]
    assert command.main(["unmerge", *arguments]) == 0
    assert error(logits(*on_one_device(apart)), logits(model, variables)) < 1e-4
    capsys.readouterr()
    assert command.main(["compose", "--adapters", *ab, "--weights", "1", f"--folder={apart}"]) == 2
    assert capsys.readouterr().err == "error: 2 adapters and 1 weights; give one to each\n"


@pytest.mark.parametrize("scan", ["off", "on"])
def test_a_run_begins_with_the_adapters_of_a_folder(scan, base, tmp_path):
    model, variables = on_one_device(base)
    pair = pair_of(LORA, model)
    kernel = variables["params"]["layers_2"]["ffn"]["up"]["kernel"]
    own = {"layers_2/ffn/up/kernel": -kernel}
    write_folder(tmp_path / "a", *pair, own=own, base=str(base), family="llama")
    config = Config(
        init=InitConfig(hf_folder=str(base)),
        peft=PeftConfig(adapters=str(tmp_path / "a"), rate_ratio=4.0),
    )
    config, start = prepare(config, tmp_path / "run")
    assert config.peft.method == "lora"
    assert config.peft.rate_ratio == 4.0
    assert config.peft.train_also
    model = dataclasses.replace(config.model, scan_layers=scan)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = jax.tree.map(lambda _: here, models.abstract_params(model))
    given = start(model, places, here)
    fitted = peft.make_peft(config.peft, model)
    adapters = peft.Adapters(given["adapters"], given["constants"])
    found, expected = updates((fitted, adapters)), updates(pair)
    assert max(error(found[path], expected[path]) for path in expected) < 1e-5
    params = dict(flat(models.restack(given["params"], model, scan=False)))
    np.testing.assert_array_equal(params["layers_2/ffn/up/kernel"], -kernel)
    np.testing.assert_array_equal(
        params["layers_1/ffn/up/kernel"], variables["params"]["layers_1"]["ffn"]["up"]["kernel"]
    )
    with pytest.raises(ConfigError, match=r"peft\.adapters holds 'lora'"):
        prepare(
            dataclasses.replace(config, peft=dataclasses.replace(config.peft, method="ia3")),
            tmp_path / "run",
        )


def test_another_model_in_the_place_of_the_base_is_noticed(base, tmp_path):
    model, _ = on_one_device(base)
    write_folder(tmp_path / "a", *pair_of(LORA, model), base=str(base), family="llama")
    run = tmp_path / "run"
    assert command.main(["import", f"--adapters={tmp_path / 'a'}", f"--workdir={run}"]) == 0
    adapted.open_run(run)
    weights = tiny_folders.weights(tiny_folders.model("llama"), seed=1)
    for file in base.iterdir():
        file.unlink()
    tiny_folders.export(
        base, tiny_folders.model("llama"), weights.__getitem__,
        dtype=np.dtype(np.float32), family="llama",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="not the model that"):
        adapted.open_run(run)
    base.rename(tmp_path / "gone")
    with pytest.raises(ConfigError, match="put it back"):
        adapted.open_run(run)
