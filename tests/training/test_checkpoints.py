"""Checkpoints: exact, found damaged when they are, never half there."""

import dataclasses
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models
from jgpt.config import CheckpointConfig, ModelConfig, from_config_dict, to_dict
from jgpt.sharding import make_mesh, replicated
from jgpt.training import checkpoints as module
from jgpt.training import manifest
from jgpt.training.checkpoints import CheckpointError, Checkpoints, restore_params
from jgpt.training.optimizer import make_optimizer
from jgpt.training.state import TrainState, abstract_state, init_state, state_shardings
from tests.training.toy_model import assert_trees_equal, config_of

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
CONFIG = config_of(model={"vocab_size": 50})
KEEP_ALL = CheckpointConfig(keep_last=100)


def random_state(seed: int, width: int = 6) -> TrainState:
    """All kinds of leaves and containers that a state can have, with random bits."""
    rng = np.random.default_rng(seed)

    def normal(*shape, dtype=np.float32):
        return jnp.asarray(rng.normal(size=shape), dtype)

    params = {
        "embedding": {"table": normal(16, width)},
        "layers_0": {"kernel": normal(width, 8, dtype=jnp.bfloat16), "empty": {}},
    }
    count = jnp.asarray(seed, jnp.int32)
    mirror = jax.tree.map(lambda p: normal(*p.shape), params)
    return TrainState(
        step=count,
        params=params,
        opt_state=((), {"inner": (count + 1, mirror)}, None),
        selection_bias={},
        ema={},
        skipped=jnp.asarray(0, jnp.int32),
        consecutive_skipped=jnp.asarray(2, jnp.int32),
    )


def save_all(workdir, steps, keep=KEEP_ALL, metrics=None, config=CONFIG, vocabulary="") -> None:
    writer = Checkpoints(workdir, keep, vocabulary)
    for step in steps:
        figures = {} if metrics is None else {"validation_loss": metrics[step]}
        writer.save(random_state(step), {"position": [step, "あ"]}, config, figures, step)
    writer.close()


def restore(workdir, state=None, config=CONFIG, vocabulary=""):
    reader = Checkpoints(workdir, KEEP_ALL, vocabulary)
    try:
        return reader.restore_latest(abstract_state(state or random_state(0), HERE), config)
    finally:
        reader.close()


def files_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def flip_a_byte(path: Path, seed: int) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(seed).randrange(len(content))] ^= 1 << random.Random(seed).randrange(8)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
    """A workdir with checkpoints 10 and 20, to be copied."""
    workdir = tmp_path_factory.mktemp("saved")
    save_all(workdir, [10, 20])
    return workdir


@pytest.fixture
def workdir(two_saved, tmp_path):
    return Path(shutil.copytree(two_saved, tmp_path / "run"))


# --- round trip ---------------------------------------------------------------------------------


def test_a_state_comes_back_bit_for_bit(workdir):
    restored = restore(workdir)
    assert restored.step == 20 and restored.notes == ()
    assert restored.data_states == ({"position": [20, "あ"]},)
    assert from_config_dict(restored.config) == CONFIG
    assert_trees_equal(restored.state, random_state(20))


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert restore(tmp_path) is None
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        restore_params(tmp_path)


def test_the_state_may_be_donated_while_it_is_being_written(tmp_path):
    """Training overwrites the buffers at once; what is on disk is what was handed over."""
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 + 7, s), donate_argnums=0)
    state = random_state(5, width=300_000)
    expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
    step(jax.tree.map(jnp.copy, state))  # compiled before
    writer = Checkpoints(tmp_path, KEEP_ALL)
    writer.save(state, {}, CONFIG, {}, 5)
    for _ in range(3):
        state = step(state)
    jax.block_until_ready(state)
    writer.close()
    restored = restore(tmp_path, random_state(5, width=300_000))
    for a, b in zip(jax.tree.leaves(restored.state), jax.tree.leaves(expected)):
        assert np.asarray(a).tobytes() == b.tobytes()


def test_saving_returns_before_the_manifest_is_written(tmp_path, monkeypatch, caplog):
    release = []
    write = manifest.write

    def slow(directory):
        while not release:
            time.sleep(0.01)
        write(directory)

    monkeypatch.setattr(manifest, "write", slow)
    writer = Checkpoints(tmp_path, KEEP_ALL)
    writer.save(random_state(1), {}, CONFIG, {}, 1)
    assert not manifest.exists(tmp_path / "checkpoints" / "1")
    assert restore(tmp_path) is None
    assert "checkpoint 1 is incomplete" in caplog.text
    release.append(True)
    writer.wait()
    assert manifest.exists(tmp_path / "checkpoints" / "1")
    writer.close()


# --- other meshes, other layouts ----------------------------------------------------------------


def test_another_mesh_restores_the_same_values(tmp_path):
    def mesh_of(**sizes):
        return make_mesh(dataclasses.replace(CONFIG.mesh, data=-1, **sizes))

    def places(mesh, axis):
        cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(axis))
        state = random_state(3)
        params = jax.tree.map(lambda p: cut if p.shape[0] == 16 else replicated(mesh), state.params)
        return state_shardings(state, params, replicated(mesh))

    first = places(mesh_of(fsdp=8), "fsdp")
    writer = Checkpoints(tmp_path, KEEP_ALL)
    writer.save(jax.device_put(random_state(3), first), {}, CONFIG, {}, 3)
    writer.close()
    for mesh, axis in ((mesh_of(tensor=4), "tensor"), (mesh_of(fsdp=2), "fsdp")):
        second = places(mesh, axis)
        reader = Checkpoints(tmp_path, KEEP_ALL)
        restored = reader.restore_latest(abstract_state(random_state(3), second), CONFIG)
        reader.close()
        assert_trees_equal(restored.state, random_state(3))
        assert jax.tree.map(lambda x: x.sharding, restored.state) == second
    assert_trees_equal(restore(tmp_path).state, random_state(3))


def model_state(config: ModelConfig, optimizer_config, seed: int) -> TrainState:
    """A state of a real model and optimizer, with random numbers in all leaves."""
    shapes = models.abstract_params(config)
    optimizer = make_optimizer(optimizer_config, 10, shapes)
    abstract = jax.eval_shape(
        functools.partial(
            init_state,
            functools.partial(models.init, config),
            optimizer,
            ema=True,
            selection_bias_shape=(2, 4),
        ),
        jax.random.key(0),
    )
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) * 10, s.dtype), abstract)


def scanned_and_unrolled(optimizer: str, saved_scan: str) -> list:
    """Configs of the run that saves and of the one that restores."""
    small = {
        "vocab_size": 32, "hidden_size": 8, "num_heads": 2, "intermediate_size": 8,
        "num_layers": 5, "num_leading_dense": 1, "ffn_pattern": ("dense", "moe"),
        "moe": {"num_experts": 4},
    }  # fmt: skip
    settings = {"optimizer": {"name": optimizer, "ema_decay": 0.9}}
    return [
        config_of(model={**small, "scan_layers": scan}, **settings)
        for scan in (saved_scan, "off" if saved_scan == "on" else "on")
    ]


def test_an_optimizer_whose_state_depends_on_the_scan_says_so(tmp_path):
    saved, now = scanned_and_unrolled("adafactor", "on")
    writer = Checkpoints(tmp_path, KEEP_ALL)
    writer.save(model_state(saved.model, saved.optimizer, 1), {}, saved, {}, 1)
    writer.close()
    with pytest.raises(CheckpointError, match=r"set model.scan_layers to on") as error:
        restore(tmp_path, model_state(now.model, now.optimizer, 2), now)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("saved_scan", ["on", "off"])
def test_layers_may_be_scanned_in_one_run_and_unrolled_in_the_next(tmp_path, saved_scan, optimizer):
    saved, now = scanned_and_unrolled(optimizer, saved_scan)
    state = model_state(saved.model, saved.optimizer, 1)
    writer = Checkpoints(tmp_path, KEEP_ALL)
    writer.save(state, {}, saved, {}, 1)
    writer.close()
    target = model_state(now.model, now.optimizer, 2)
    restored = restore(tmp_path, target, now)
    assert [n for n in restored.notes if "model.scan_layers" in n]
    assert jax.tree.structure(restored.state) == jax.tree.structure(target)

    def unrolled(tree):
        return models.restack(tree, now.model, scan=False)

    assert_trees_equal(unrolled(restored.state.params), unrolled(state.params))
    assert_trees_equal(unrolled(restored.state.ema), unrolled(state.ema))
    assert_trees_equal(restored.state.selection_bias, state.selection_bias)
    # Moments follow their parameters: leaf by leaf, the same numbers in the other form.
    sums = [
        sorted(
            float(np.sum(np.asarray(x, np.float64)))
            for x in jax.tree.leaves(
                jax.tree.map(
                    lambda n: unrolled(n) if isinstance(n, dict) and "head" in n else n,
                    s.opt_state,
                    is_leaf=lambda n: isinstance(n, dict) and "head" in n,
                )
            )
        )
        for s in (restored.state, state)
    ]
    np.testing.assert_array_equal(*sums)


# --- damage -------------------------------------------------------------------------------------


def test_one_flipped_byte_anywhere_is_found_and_the_one_before_is_used(workdir, two_saved):
    damaged = workdir / "checkpoints" / "20"
    for seed, path in enumerate(files_of(damaged)):
        if path.stat().st_size == 0:
            continue
        intact = path.read_bytes()
        flip_a_byte(path, seed)
        step, notes = module.newest_intact(workdir / "checkpoints")
        assert step == 10
        name = path.relative_to(damaged).as_posix()
        assert notes[0].startswith(f"checkpoint 20 is damaged: {name}"), notes
        assert notes[1] == "using checkpoint 10, the newest intact one"
        path.write_bytes(intact)
    assert module.newest_intact(workdir / "checkpoints") == (20, [])


def test_every_byte_of_the_manifest_matters(workdir):
    folder = workdir / "checkpoints" / "20"
    path = folder / manifest.NAME
    intact = path.read_bytes()
    for seed in range(100):
        flip_a_byte(path, seed)
        assert manifest.damage(folder), seed
        path.write_bytes(intact)
    path.write_bytes(b"")
    assert manifest.damage(folder)


@pytest.mark.parametrize("harm", ["truncated", "removed", "longer"])
def test_files_cut_short_or_lost_are_found(workdir, harm):
    for path in files_of(workdir / "checkpoints" / "20"):
        if path.name == manifest.NAME:
            continue
        intact = path.read_bytes()
        if harm == "removed":
            path.unlink()
        else:
            path.write_bytes(intact[:-1] if harm == "truncated" else intact + b"\0")
        if intact or harm != "truncated":
            assert path.name in manifest.damage(workdir / "checkpoints" / "20")
        path.write_bytes(intact)


def test_the_newest_intact_checkpoint_is_restored_and_it_says_so(workdir):
    flip_a_byte(next((workdir / "checkpoints" / "20" / "state").rglob("d/*")), 0)
    restored = restore(workdir)
    assert restored.step == 10
    assert_trees_equal(restored.state, random_state(10))
    assert any("checkpoint 20 is damaged: state/" in note for note in restored.notes)
    assert "using checkpoint 10, the newest intact one" in restored.notes
    assert restore_params(workdir).step == 10


def test_with_every_checkpoint_damaged_nothing_starts_from_scratch(workdir):
    for step in ("10", "20"):
        flip_a_byte(workdir / "checkpoints" / step / "metrics.json", 0)
    for read in (restore, restore_params):
        with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged") as error:
            read(workdir)
        assert "\n" not in str(error.value) and "metrics.json" in str(error.value)


def test_an_incomplete_checkpoint_is_passed_over(workdir):
    (workdir / "checkpoints" / "20" / manifest.NAME).unlink()
    restored = restore(workdir)
    assert restored.step == 10
    assert restored.notes[0].startswith("checkpoint 20 is incomplete")


def test_a_damaged_checkpoint_is_written_anew_and_removed_when_overtaken(workdir):
    flip_a_byte(workdir / "checkpoints" / "20" / "config.json", 0)
    writer = Checkpoints(workdir, KEEP_ALL)
    writer.restore_latest(abstract_state(random_state(0), HERE), CONFIG)
    writer.save(random_state(15), {}, CONFIG, {}, 15)
    writer.wait()
    assert module.steps(writer.root) == [15, 10]
    writer.close()
    assert restore(workdir).step == 15


def test_a_complete_checkpoint_is_not_written_again(workdir):
    before = (workdir / "checkpoints" / "20" / manifest.NAME).read_bytes()
    writer = Checkpoints(workdir, KEEP_ALL)
    writer.save(random_state(21), {}, CONFIG, {}, 20)
    writer.close()
    assert (workdir / "checkpoints" / "20" / manifest.NAME).read_bytes() == before
    assert_trees_equal(restore(workdir).state, random_state(20))


# --- which are kept -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "best", "kept"), [(2, 1, [5, 4, 2]), (1, 2, [5, 3, 2]), (0, 0, [5]), (1, 0, [5])]
)
def test_the_last_and_the_best_are_kept(tmp_path, last, best, kept):
    losses = {1: 9.0, 2: 1.0, 3: 2.0, 4: float("nan"), 5: 3.0}
    save_all(tmp_path, [1, 2, 3, 4, 5], CheckpointConfig(keep_last=last, keep_best=best), losses)
    assert module.steps(tmp_path / "checkpoints") == kept


def test_checkpoints_without_a_validation_are_never_best(tmp_path):
    save_all(tmp_path, [1, 2, 3], CheckpointConfig(keep_last=1, keep_best=1))
    assert module.steps(tmp_path / "checkpoints") == [3]


# --- what does not fit --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": {"hidden_size": 128}}, r"model.hidden_size was 256 and is 128"),
        ({"model": {"vocab_size": 51}}, r"model.vocab_size was 50 and is 51"),
        ({"data": {"sequence_length": 64}}, r"data.sequence_length was 256 and is 64"),
        ({"data": {"sources": "text:x"}}, r"data.sources was 'microworld' and is 'text:x'"),
        ({"optimizer": {"name": "lion"}}, r"optimizer.name was 'adamw' and is 'lion'"),
        ({"optimizer": {"ema_decay": 0.5}}, r"optimizer.ema_decay was 0.0 and is 0.5"),
        ({"train": {"seed": 9}}, r"train.seed was 3 and is 9"),
    ],
)
def test_settings_that_may_not_change_are_named(workdir, change, named):
    overrides = {"model": {"vocab_size": 50}, **change}
    overrides["model"] = {"vocab_size": 50, **change.get("model", {})}
    with pytest.raises(CheckpointError, match=re.escape(named).replace(r"\.", ".")) as error:
        restore(workdir, config=config_of(**overrides))
    assert "\n" not in str(error.value) and "--workdir" in str(error.value)


def test_settings_that_may_change_are_reported(workdir):
    config = config_of(
        model={"vocab_size": 50}, train={"steps": 77}, data={"workers": 3}, sample={"top_k": 5}
    )
    restored = restore(workdir, config=config)
    assert sorted(note.split("change: ")[1] for note in restored.notes) == [
        "data.workers was 0 and is 3",
        "sample.top_k was 0 and is 5",
        "train.steps was 20 and is 77",
    ]


def test_every_setting_has_a_rule():
    def names(values, prefix=""):
        for name, value in values.items():
            if isinstance(value, dict):
                yield from names(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    found = {name: module.compatibility.rule(name) for name in names(to_dict(CONFIG))}
    assert set(found.values()) == {"fixed", "free"}
    for pattern, _ in module.compatibility.RULES:
        assert any(re.search(pattern, name) for name in found), f"{pattern} matches no setting"


def test_a_config_saved_before_a_setting_existed_has_its_default(workdir):
    saved = to_dict(CONFIG)
    del saved["train"]["log_every"]
    saved["train"]["forgotten_setting"] = 1
    assert module.compatibility.changes(saved, CONFIG) == ([], [])


def test_another_tokenizer_is_refused(tmp_path):
    save_all(tmp_path, [1], vocabulary="a" * 64)
    assert restore(tmp_path, vocabulary="a" * 64).step == 1
    for read in (restore, restore_params):
        with pytest.raises(CheckpointError, match="another tokenizer"):
            read(tmp_path, vocabulary="b" * 64)


def test_arrays_of_another_shape_are_named(workdir):
    with pytest.raises(CheckpointError, match=r"float32\[16, 6\] there and float32\[16, 7\] here"):
        restore(workdir, random_state(0, width=7))


# --- the model alone ----------------------------------------------------------------------------


@pytest.mark.parametrize("use_ema", [True, False])
def test_a_model_is_read_without_its_optimizer(tmp_path, use_ema):
    state = dataclasses.replace(
        random_state(4), ema=random_state(8).params, selection_bias=jnp.ones((2, 3))
    )
    writer = Checkpoints(tmp_path, KEEP_ALL)
    writer.save(state, {}, CONFIG, {}, 4)
    writer.close()
    restored = restore_params(tmp_path, use_ema=use_ema)
    expected = nested_without_empties(state.ema if use_ema else state.params)
    assert_trees_equal(restored.variables["params"], expected)
    assert_trees_equal(restored.variables["selection_bias"], state.selection_bias)
    assert restored.config == CONFIG and restored.step == 4


def nested_without_empties(tree):
    return {k: {n: v for n, v in d.items() if not isinstance(v, dict)} for k, d in tree.items()}


# --- disks and signals --------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot make .*--workdir") as error:
        Checkpoints(tmp_path / "file", KEEP_ALL)
    assert "\n" not in str(error.value)


def test_a_disk_without_room_is_refused_before_anything_is_written(workdir, monkeypatch):
    usage = type(shutil.disk_usage("/"))(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    writer = Checkpoints(workdir, KEEP_ALL)
    with pytest.raises(CheckpointError, match=r"checkpoint 30 needs .*--workdir") as error:
        writer.save(random_state(30, width=1000), {}, CONFIG, {}, 30)
    assert "\n" not in str(error.value)
    writer.close()
    assert module.steps(writer.root) == [20, 10]


def python(script: str, *arguments: object, **kwargs) -> subprocess.Popen:
    """Another process that runs `script` beside this file's helpers."""
    here = Path(__file__).parent
    paths = [str(here.parent.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        text=True,
        **kwargs,
    )


@pytest.mark.slow
def test_a_full_disk_is_one_clear_line_and_leaves_the_checkpoint_before(tmp_path):
    """Files over 1 MB cannot be written: the state of the second checkpoint does not fit."""
    script = """
        import resource, signal, sys
        from tests.training.test_checkpoints import *
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        writer = Checkpoints(sys.argv[1], KEEP_ALL)
        writer.save(random_state(1), {}, CONFIG, {}, 1)
        writer.wait()
        for save in (1, 2):
            try:
                writer.save(random_state(2, width=300_000), {}, CONFIG, {}, 2)
                writer.wait()
            except CheckpointError as error:
                print(error)
                assert not manifest.exists(writer.root / "2")
        writer.save(random_state(3), {}, CONFIG, {}, 3)
        writer.close()
    """
    process = python(script, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    lines = output.splitlines()
    assert len(lines) == 2, output
    for line in lines:
        assert "checkpoint 2 could not be written" in line and "File too large" in line
    assert "_SignalingThread" not in errors
    assert module.steps(tmp_path / "checkpoints") == [3, 1]
    assert_trees_equal(restore(tmp_path).state, random_state(3))


@pytest.mark.slow
def test_killed_while_writing_the_newest_complete_one_is_found(tmp_path):
    script = """
        import sys
        from tests.training.test_checkpoints import *
        writer = Checkpoints(sys.argv[1], CheckpointConfig(keep_last=2))
        first = int(sys.argv[2])
        for step in range(first, first + 10_000):
            writer.save(random_state(step, width=20_000), {"at": step}, CONFIG, {}, step)
            print(step, flush=True)
    """
    rng, first = random.Random(0), 1
    for _ in range(2):
        process = python(script, tmp_path, first, stdout=subprocess.PIPE)
        for _ in range(4):
            saving = int(process.stdout.readline())  # being written, or just complete
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].split()
        saving = int(rest[-1]) if rest else saving
        restored = restore(tmp_path, random_state(0, width=20_000))
        assert restored.step in (saving - 1, saving, saving + 1)
        assert restored.data_states == ({"at": restored.step},)
        assert_trees_equal(restored.state, random_state(restored.step, width=20_000))
        first = restored.step + 1


def test_config_is_readable_json(workdir):
    saved = json.loads((workdir / "checkpoints" / "20" / "config.json").read_text("utf-8"))
    assert saved["config"]["model"]["hidden_size"] == 256
