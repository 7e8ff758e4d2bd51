"""Runs that train a part of a model: adapters on a frozen one, and blocks by rules."""

import dataclasses
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jgpt import models
from jgpt.config import ConfigError, MeshConfig, from_config_dict
from jgpt.interop.start import prepare
from jgpt.sharding import device_batch, make_mesh
from jgpt.training import forgetting, loop
from jgpt.training.assembly import make_steps, placed
from jgpt.training.evaluation import Evaluator
from jgpt.training.state import ADAPTERS, variables
from jgpt.training.state_files import nested, saved_arrays
from jgpt.training.trainable import make_trainable, unrolled_paths
from jgpt.trees import leaves_by_path
from tests.training.test_meshes import DENSE, MOE, batch, config_of
from tests.training.tiny import settings
from tests.training.toy_model import relative_error

SCANNED_MOE = {**MOE, "scan_layers": "on"}
QUIET = {
    "train__steps": 4,
    "train__eval_every": 0,
    "train__sample_every": 0,
    "checkpoint__every": 2,
    "sample__final_samples": 0,
    "data__validation_documents": 2,
}


def adapted(model=DENSE, **peft):
    config = config_of(model)
    changes = {"method": "lora", "rank": 2, "targets": ("all-linear",), **peft}
    return dataclasses.replace(config, peft=dataclasses.replace(config.peft, **changes))


def few_steps(config, sizes, steps=2):
    """(state before, state after, metrics of the last step)."""
    mesh = make_mesh(MeshConfig(**sizes), jax.devices()[: int(np.prod(list(sizes.values())))])
    with placed(mesh):
        init, _, step, _ = make_steps(config, mesh)
        state = init()
        before = jax.device_get(state)
        for _ in range(steps):
            state, metrics = step(state, device_batch(mesh, batch()))
        return before, jax.device_get(state), jax.device_get(metrics)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A model to adapt, and a cache."""
    folder = tmp_path_factory.mktemp("adapter_runs")
    config = from_config_dict(settings(folder / "cache", **{**QUIET, "train__steps": 1}))
    loop.run(config, folder / "base")
    return folder


def adapter_run(workdir, name, **changes):
    values = {**QUIET, "init__workdir": str(workdir / "base"), "peft__method": "lora", **changes}
    config, start = prepare(from_config_dict(settings(workdir / "cache", **values)), workdir / name)
    return loop.run(config, workdir / name, start)


def test_adapters_are_all_that_a_checkpoint_holds_and_a_run_goes_on_from_them(workdir):
    whole = adapter_run(workdir, "whole", model__scan_layers="on")
    last = workdir / "whole" / "checkpoints" / "4"
    saved = saved_arrays(last)
    assert saved["params"].keys() == {"adapters"} and "frozen" not in saved
    shutil.copytree(workdir / "whole", workdir / "again")
    shutil.rmtree(workdir / "again" / "checkpoints" / "4")
    again = adapter_run(workdir, "again", model__scan_layers="on")
    assert again["validation_loss"] == whole["validation_loss"]
    unrolled = adapter_run(workdir, "again", train__steps=5)
    assert unrolled["step"] == 5


@pytest.mark.parametrize("method", ["lora", "adalora", "lora_fa"])
def test_what_is_frozen_stays_bit_for_bit_and_what_is_trained_moves(method):
    config = adapted(method=method)
    before, after, metrics = few_steps(config, {"data": 1}, steps=2)
    for path, leaf in leaves_by_path(before.frozen).items():
        np.testing.assert_array_equal(leaf, leaves_by_path(after.frozen)[path])
    moved = {
        path: bool(np.any(leaf != leaves_by_path(after.params)[path]))
        for path, leaf in leaves_by_path(before.params).items()
    }
    assert all(moved.values()), [path for path, value in moved.items() if not value]
    assert np.isfinite(metrics["total"])


@pytest.mark.parametrize("model", [{**DENSE, "scan_layers": "on"}, DENSE, SCANNED_MOE])
def test_a_finished_run_says_what_rank_every_module_was_left(model):
    config = adapted(model, method="adalora")
    rng = np.random.default_rng(0)
    trained = make_trainable(config).abstract.params[ADAPTERS]
    lambdas = {
        path: rng.normal(size=leaf.shape) * rng.integers(0, 2, leaf.shape)
        for path, leaf in leaves_by_path(trained).items()
    }
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    found = Evaluator(SimpleNamespace(config=config, mesh=mesh)).ranks({ADAPTERS: nested(lambdas)})
    expected = {
        path.removesuffix("/lora_e"): (row != 0).sum(-1).tolist()
        for stack, leaf in lambdas.items()
        if stack.endswith("/lora_e")
        for places in [unrolled_paths(stack, config.model)]
        for path, row in zip(places, leaf if places != [stack] else [leaf], strict=True)
    }
    assert found == {"ranks": expected}
    assert {f"layers_{i}/attention/query" for i in range(config.model.num_layers)} <= set(expected)


@pytest.mark.parametrize(
    "model, sizes",
    [
        (DENSE, {"data": 2, "fsdp": 2, "tensor": 2}),
        pytest.param(
            {**MOE, "scan_layers": "on"}, {"fsdp": 2, "expert": 4}, marks=pytest.mark.slow
        ),
    ],
    ids=["dense", "moe"],
)
def test_meshes_equal_one_device(model, sizes):
    config = adapted(model, rank_pattern=("layers_1/attention/query=1",))
    _, alone, of_one = few_steps(config, {"data": 1})
    _, after, of_many = few_steps(config, sizes)
    assert relative_error(of_many["total"], of_one["total"]) < 1e-5
    for path, leaf in leaves_by_path(alone.params).items():
        other = leaves_by_path(after.params)[path]
        assert np.abs(other - leaf).max() < 1e-4 * max(1.0, np.abs(leaf).max()), path


def test_rules_train_the_top_block_of_a_stack_alone():
    rules = ("layers_1/attention: rate=0", "layers_1/: rate=0.5 decay=0", ".*: freeze")
    config = config_of({**DENSE, "scan_layers": "on"})
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, rules=rules, warmup_steps=1)
    )
    before, after, _ = few_steps(config, {"data": 1}, steps=1)
    first, second = (
        models.restack(variables(state)["params"], config.model, scan=False)
        for state in (before, after)
    )
    moved = {
        path
        for path, leaf in leaves_by_path(first).items()
        if np.any(leaf != leaves_by_path(second)[path])
    }
    assert moved and all(path.startswith("layers_1/") for path in moved)
    assert not any("attention/" in path for path in moved)
    step = np.abs(
        second["layers_1"]["ffn"]["up"]["kernel"] - first["layers_1"]["ffn"]["up"]["kernel"]
    )
    # Adam's first step is the learning rate in every entry.
    np.testing.assert_allclose(step.max(), 0.5 * config.optimizer.learning_rate, rtol=1e-3)


@pytest.mark.parametrize(
    "rules, words",
    [
        (("layers_1/ freeze",), "is no rule"),
        (("layers_1/: rate=-1",), "cannot be read"),
        (("layers_1/: rate=1",), "no rule for"),
        (("layer_7/: freeze", ".*: rate=1"), "first match of no parameter"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rules, words):
    config = config_of(DENSE)
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, rules=rules)
    )
    with pytest.raises(ConfigError, match=words):
        make_trainable(config)


def test_lower_blocks_of_a_stack_cannot_be_trained_without_the_upper():
    config = config_of({**DENSE, "scan_layers": "on"})
    rules = ("layers_0/: rate=1", ".*: freeze")
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, rules=rules)
    )
    with pytest.raises(ConfigError, match="scan_layers"):
        make_trainable(config).axes()


def test_a_run_held_to_an_anchor_goes_on_held(workdir):
    """A checkpoint holds nothing of the anchor: it is read again, and the same losses follow."""
    values = settings(workdir / "cache", **QUIET, init__workdir=str(workdir / "base"))
    model = prepare(from_config_dict(values), workdir)[0].model
    weights = models.init(model, jax.random.key(1))
    information = jax.tree.map(lambda w: jax.random.uniform(jax.random.key(2), w.shape), weights)
    forgetting.write_anchor(workdir / "fisher", information, weights, {})
    held = {"peft__method": "none", "forgetting__ewc": str(workdir / "fisher")}
    whole = adapter_run(workdir, "held", **held)
    assert "anchor" not in saved_arrays(workdir / "held" / "checkpoints" / "4")
    shutil.copytree(workdir / "held", workdir / "held again")
    shutil.rmtree(workdir / "held again" / "checkpoints" / "4")
    again = adapter_run(workdir, "held again", **held)
    free = adapter_run(workdir, "free", peft__method="none")
    assert again["validation_loss"] == whole["validation_loss"] != free["validation_loss"]
