"""Config: one home per default, unknown and impossible settings refused by name."""

import pathlib
import subprocess

import ml_collections
import pytest

from configs import default
from jgpt import config as config_lib
from jgpt.config import Config, ConfigError, ModelConfig, from_config_dict, to_dict


def test_the_default_config_file_is_the_dataclasses():
    assert from_config_dict(default.get_config()) == Config()


def test_the_default_config_file_is_generated(tmp_path):
    path = tmp_path / "default.py"
    path.write_text(config_lib.default_config_source())
    ruff = pytest.importorskip("ruff", reason="formatting is compared; pip install ruff")
    subprocess.run([ruff.find_ruff_bin(), "format", "--line-length=100", path], check=True)
    there = pathlib.Path(default.__file__).read_text()
    assert path.read_text() == there, "run: python -m jgpt.config > configs/default.py; ruff format"


def test_round_trip_through_a_plain_dict():
    config = from_config_dict({"model": {"attention_pattern": ["local", "global"], "window": 8}})
    assert config.model.attention_pattern == ("local", "global")
    assert from_config_dict(to_dict(config)) == config
    assert hash(config.model) == hash(from_config_dict(to_dict(config)).model)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": {}}, "unknown config field 'modle'; did you mean 'model'"),
        ({"model": {"num_head": 3}}, "'model.num_head'; did you mean 'num_heads'"),
        ({"model": {"moe": {"experts": 3}}}, "'model.moe.experts'"),
        ({"model": {"hidden_size": 10, "num_heads": 3}}, "num_heads .3. does not divide"),
        ({"model": {"num_heads": 4, "num_kv_heads": 3}}, "num_kv_heads .3. does not divide"),
        ({"model": {"hidden_size": 12, "num_heads": 4}}, "rotary positions need an even width"),
        (
            {"model": {"ffn_pattern": ("moe",), "moe": {"num_experts": 4, "top_k": 5}}},
            "model.moe.top_k is 5",
        ),
        ({"model": {"moe": {"num_experts": 4}}}, "no layer is 'moe'"),
        ({"model": {"ffn_pattern": ("moe",)}}, "set model.moe.num_experts"),
        ({"model": {"attention_pattern": ("local",)}}, "set model.window"),
        ({"model": {"position": "rotary"}}, "model.position is 'rotary'; choose one of rope"),
        ({"model": {"num_layers": 2.5}}, "model.num_layers is 2.5; write int"),
        ({"model": {"num_layers": True}}, "model.num_layers is True; write int"),
        ({"model": {"attention_pattern": "local"}}, "write a tuple"),
        ({"optimizer": {"learning_rate": float("nan")}}, "write a finite number"),
        ({"data": {"batch_size": 12}}, "must divide one another"),
        ({"data": {"sources": " "}}, "data.sources is empty"),
        ({"train": {"microbatches": 3}}, "train.microbatches .3. does not divide"),
        (
            {"model": {"position": "learned", "max_length": 8}},
            "longer than the learned position table",
        ),
        ({"model": 3}, "model is 3; it is a section"),
        (
            {
                "model": {
                    "ffn_pattern": ("moe",),
                    "moe": {"num_experts": 4, "router": "expert_choice"},
                }
            },
            "expert_choice.*bidirectional",
        ),
    ],
)
def test_bad_settings_are_refused_by_name(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        from_config_dict(values)
    assert "\n" not in str(error.value)


def test_a_locked_config_dict_refuses_unknown_overrides_and_takes_known_ones():
    config = default.get_config().lock()
    with pytest.raises(AttributeError):
        config.model.num_head = 3
    config.model.num_layers = 7
    assert isinstance(config, ml_collections.ConfigDict)
    assert from_config_dict(config).model.num_layers == 7


def test_layer_kinds_follow_the_patterns():
    model = ModelConfig(
        num_layers=5,
        attention_pattern=("local", "global"),
        window=4,
        ffn_pattern=("dense", "dense", "moe"),
        num_leading_dense=3,
        moe=config_lib.MoEConfig(num_experts=2),
    )
    assert model.period == 6
    assert [model.layer_kind(i) for i in range(5)] == [
        ("local", "dense"),
        ("global", "dense"),
        ("local", "dense"),
        ("global", "dense"),
        ("local", "dense"),
    ]
