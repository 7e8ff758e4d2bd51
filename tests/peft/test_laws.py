"""Laws that every method obeys, whatever it is; a method's row in CASES is all that it needs here.

Leaves are random, also those that begin at 0 or 1, so that nothing holds because it is nothing.
"""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models, peft
from jgpt.config import (
    BottleneckConfig,
    ConfigError,
    ModelConfig,
    MoEConfig,
    PeftConfig,
    PromptConfig,
)
from jgpt.peft.adapters import unrolled
from jgpt.trees import count, leaves_by_path, map_with_path

MODEL = ModelConfig(
    vocab_size=32,
    num_layers=2,
    hidden_size=64,  # what a block of NF4 needs
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=64,
    attention_bias=True,
    attention_output_bias=True,
    ffn_bias=True,
    scan_layers="on",
)
ROWS, LENGTH = 3, 6
BATCH = {"inputs": np.random.default_rng(0).integers(1, 32, (ROWS, LENGTH), np.int32)}
LINEAR = (r"attention/(query|value)$", "ffn/down$")
"""Maps whose inputs and outputs differ in size, with and without a bias."""
WIDE = ("all-linear", "embedding")
PROMPT = PromptConfig(length=2, hidden=8)

CASES = {
    "lora": PeftConfig(method="lora", targets=LINEAR, rank=4, alpha=6.0),
    "lora, wide": PeftConfig(method="lora", targets=WIDE, rank=4, alpha=6.0, bias=True),
    "lora, gaussian": PeftConfig(method="lora", targets=LINEAR, rank=4, init="gaussian"),
    "rslora": PeftConfig(method="rslora", targets=LINEAR, rank=4, alpha=3.0),
    "lora_plus": PeftConfig(method="lora_plus", targets=LINEAR, rank=4),
    "lora_fa": PeftConfig(method="lora_fa", targets=LINEAR, rank=4, alpha=3.0),
    "pissa": PeftConfig(method="pissa", targets=LINEAR, rank=4, alpha=6.0),
    "olora": PeftConfig(method="olora", targets=LINEAR, rank=4, alpha=2.0),
    "loftq": PeftConfig(method="loftq", targets=LINEAR, rank=4, alpha=6.0),
    "dora": PeftConfig(method="dora", targets=LINEAR, rank=4, alpha=6.0),
    "dora, pissa": PeftConfig(method="dora", targets=LINEAR, rank=4, alpha=6.0, init="pissa"),
    "adalora": PeftConfig(method="adalora", targets=LINEAR, rank=4),
    "vera": PeftConfig(method="vera", targets=LINEAR, rank=16),
    "ia3": PeftConfig(method="ia3"),
    "houlsby": PeftConfig(method="houlsby", bottleneck=BottleneckConfig(size=4)),
    "pfeiffer": PeftConfig(method="pfeiffer", bottleneck=BottleneckConfig(size=4)),
    "parallel": PeftConfig(method="parallel", bottleneck=BottleneckConfig(size=4)),
    "prefix_tuning": PeftConfig(method="prefix_tuning", prompt=PROMPT),
    "p_tuning_v2": PeftConfig(method="p_tuning_v2", prompt=PROMPT),
    "prompt_tuning": PeftConfig(method="prompt_tuning", prompt=PROMPT),
    "p_tuning": PeftConfig(method="p_tuning", prompt=dataclasses.replace(PROMPT, encoder="lstm")),
}


def error(found, expected):
    """Largest difference over the largest entry."""
    return float(abs(found - expected).max() / abs(expected).max())


def random_like(tree, seed, size):
    """Random numbers of standard deviation `size` in the shapes of `tree`, added to it."""

    def draw(path, leaf):
        generator = np.random.default_rng([seed, zlib.crc32(path.encode())])
        noise = size * generator.standard_normal(leaf.shape)
        return leaf + jnp.asarray(noise, leaf.dtype)

    return map_with_path(draw, tree)


@functools.cache
def params():
    """Of the model with scanned layers."""
    return random_like(models.init(MODEL, jax.random.key(0)), 1, 0.1)


@functools.cache
def plain():
    """Compiled logits of the model without adapters."""
    return jax.jit(lambda params: models.apply(MODEL, {"params": params}, BATCH)[0])


class Programs:
    """What is compiled for a method: functions of base parameters and adapters, for one batch."""

    def __init__(self, fitted):
        apply = peft.bind(fitted, functools.partial(models.apply, MODEL))
        direction = np.random.default_rng(1).standard_normal((ROWS, LENGTH, MODEL.vocab_size))
        batch = self.batch = with_virtual_tokens(fitted)

        @jax.jit
        def logits_and_gradients(base, adapters):
            def total(trained):
                adapted = adapters._replace(trained=trained)
                logits = apply(variables(base, adapted), batch)[0]
                return (logits * direction).sum(), logits

            gradients, logits = jax.grad(total, has_aux=True)(adapters.trained)
            return logits, gradients

        @jax.jit
        def decode(base, adapters, ids, tokens, cache):
            part = {"inputs": tokens, peft.ADAPTER_IDS: ids}
            logits, aux = apply(variables(base, adapters), part, cache=cache)
            return logits, aux.cache

        self.logits_and_gradients, self.decode = logits_and_gradients, decode


def with_virtual_tokens(fitted):
    """BATCH, each row beginning with the ids that stand for learned embeddings."""
    virtual = fitted.method.virtual_tokens(fitted.settings)
    inputs = BATCH["inputs"].copy()
    inputs[:, :virtual] = np.arange(-virtual, 0)
    return {"inputs": inputs}


def variables(base, adapters):
    return {"params": base, peft.TRAINED: adapters.trained, peft.CONSTANTS: adapters.constants}


AT_THE_START = ("method", "targets", "rank", "alpha", "scaling", "init", "bias", "rate_ratio")
"""Settings that the computation does not see but through the leaves."""


class Fitted:
    """A method on the tiny model."""

    def __init__(self, settings):
        self.peft = peft.make_peft(settings, MODEL)
        self.base, self.start = peft.init(self.peft, params(), jax.random.key(1))
        self.random = self.varied(2)
        plain = PeftConfig()
        rest = {name: getattr(plain, name) for name in AT_THE_START}
        seen = dataclasses.replace(self.peft.settings, **rest)
        self.programs = shared_programs((self.peft.method.call, seen), self.peft)

    def varied(self, seed):
        return self.start._replace(trained=random_like(self.start.trained, seed, 0.3))

    def logits_and_gradients(self, adapters):
        return self.programs.logits_and_gradients(self.base, adapters)

    @functools.cached_property
    def at_random(self):
        return self.logits_and_gradients(self.random)


PROGRAMS = {}


def shared_programs(key, fitted):
    """One `Programs` for all methods that compute alike, however they begin or are trained."""
    if key not in PROGRAMS:
        PROGRAMS[key] = Programs(fitted)
    return PROGRAMS[key]


@functools.cache
def fitted(name):
    return Fitted(CASES[name])


every_method = pytest.mark.parametrize("name", CASES)


def test_every_method_has_a_row():
    missing = set(peft.METHODS) - {settings.method for settings in CASES.values()}
    assert not missing


@every_method
def test_training_begins_with_the_model_itself_where_the_method_says_so(name):
    method = fitted(name)
    logits, _ = method.logits_and_gradients(method.start)
    if method.peft.method.identity:
        assert error(logits, plain()(params())) < 1e-5
    else:
        assert error(logits, plain()(params())) > 1e-4


@every_method
def test_merged_weights_do_what_weights_and_adapters_do(name):
    method = fitted(name)
    logits, _ = method.at_random
    assert error(logits, plain()(params())) > 0.01
    if method.peft.method.merge is None:
        with pytest.raises(ConfigError, match="cannot be merged"):
            peft.merge(method.peft, method.base, method.random)
        return
    merged = peft.merge(method.peft, method.base, method.random)
    assert error(plain()(merged), logits) < 1e-5


@every_method
def test_unmerged_weights_are_the_base(name):
    method = fitted(name)
    if method.peft.method.merge is None:
        pytest.skip("cannot be merged")
    merged = peft.merge(method.peft, method.base, method.random)
    if method.peft.method.unmerge is None or method.peft.settings.bias:
        with pytest.raises(ConfigError, match="taken out"):
            peft.unmerge(method.peft, merged, method.random)
        return
    again = leaves_by_path(peft.unmerge(method.peft, merged, method.random))
    for path, leaf in leaves_by_path(method.base).items():
        np.testing.assert_allclose(again[path], leaf, rtol=0, atol=1e-5, err_msg=path)


@every_method
def test_every_trained_leaf_learns(name):
    method = fitted(name)
    for path, gradient in leaves_by_path(method.at_random[1]).items():
        assert np.isfinite(gradient).all(), path
        assert abs(gradient).max() > 1e-6, path
    assert peft.count_trained(method.peft) == count(method.start.trained)


@every_method
def test_adapters_lie_as_announced(name):
    method = fitted(name)
    expected = peft.abstract_adapters(method.peft)
    found = jax.eval_shape(lambda: method.start)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert jax.tree.leaves(found) == jax.tree.leaves(expected)


@every_method
def test_decoding_with_an_adapter_per_row_is_each_adapter_s_own_forward_pass(name):
    """Cached in two parts and unrolled here; at once and with scanned layers there."""
    method = fitted(name)
    other = method.varied(3)
    ids = np.array([1, 0, 1], np.int32)
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        *(type(a)(*(unrolled(method.peft, tree) for tree in a)) for a in (method.random, other)),
    )
    base = unrolled(method.peft, method.base)
    cache = models.init_cache(MODEL, ROWS, LENGTH)
    found = []
    for tokens in np.split(method.programs.batch["inputs"], 2, axis=1):
        logits, cache = method.programs.decode(base, stacked, ids, tokens, cache)
        found.append(logits)
    found = jnp.concatenate(found, axis=1)
    alone = [method.at_random[0], method.logits_and_gradients(other)[0]]
    assert error(alone[0], alone[1]) > 0.01
    for row, which in enumerate(ids):
        assert error(found[row], alone[which][row]) < 1e-5


EXPERTS = dataclasses.replace(
    MODEL,
    num_layers=1,
    hidden_size=16,
    intermediate_size=16,
    ffn_bias=False,
    ffn_pattern=("moe",),
    moe=MoEConfig(num_experts=4, intermediate_size=24),
)


@pytest.mark.parametrize("name", ["pissa", "dora", "adalora"])
def test_every_expert_has_an_adapter_of_its_own(name):
    """The model itself at first, and merged what it is bound."""
    settings = PeftConfig(method=name, targets=("moe/(up|down)$",), rank=2, alpha=3.0)
    fitted = peft.make_peft(settings, EXPERTS)
    whole = random_like(models.init(EXPERTS, jax.random.key(0)), 1, 0.1)
    base, start = peft.init(fitted, whole, jax.random.key(1))
    apply = peft.bind(fitted, functools.partial(models.apply, EXPERTS))
    bound = jax.jit(lambda adapters: apply(variables(base, adapters), BATCH)[0])
    plain = jax.jit(lambda params: models.apply(EXPERTS, {"params": params}, BATCH)[0])
    assert error(bound(start), plain(whole)) < 1e-5
    adapters = start._replace(trained=random_like(start.trained, 2, 0.3))
    assert error(bound(adapters), plain(whole)) > 0.01
    assert error(bound(adapters), plain(peft.merge(fitted, base, adapters))) < 1e-5


# --- which modules, which ranks ------------------------------------------------------------------


def test_trained_numbers_of_gpt3_with_rank_four_queries_and_values():
    config = ModelConfig(
        vocab_size=50257,
        num_layers=96,
        hidden_size=12288,
        num_heads=96,
        num_kv_heads=96,
        intermediate_size=4 * 12288,
        scan_layers="on",
    )
    fitted = peft.make_peft(PeftConfig(method="lora", rank=4), config)
    assert peft.count_trained(fitted) == 96 * 2 * 4 * (12288 + 12288) == 18_874_368
    assert count(peft.abstract_adapters(fitted).trained) == 18_874_368


def test_patterns_give_some_modules_their_own_rank_and_alpha():
    settings = PeftConfig(
        method="lora",
        targets=("all-linear",),
        exclude=("ffn",),
        rank=4,
        alpha=8.0,
        rank_pattern=("layers_1/.*query=2", "value=6"),
        alpha_pattern=("layers_0/.*query=3",),
    )
    sites = {t.site.path: t for t in peft.make_peft(settings, MODEL).targets}
    assert {t.rank for p, t in sites.items() if p.endswith("value")} == {6}
    assert not [path for path in sites if "ffn" in path]
    first, second = (sites[f"layers_{i}/attention/query"] for i in (0, 1))
    assert (first.rank, first.alpha, first.scale) == (4, 3.0, 3 / 4)
    assert (second.rank, second.alpha, second.scale) == (2, 8.0, 4.0)


@pytest.mark.parametrize("method", ["dora", "adalora"])
def test_layers_of_a_stack_may_differ_in_rank(method):
    """Columns that a layer does not use neither count nor act nor learn; with remat."""
    settings = PeftConfig(
        method=method,
        rank=4,
        rank_pattern=() if method == "adalora" else ("layers_1/.*query=2",),
        exclude=("layers_0/.*value",),
    )
    config = dataclasses.replace(MODEL, remat="full")
    scanned = peft.make_peft(settings, config)
    plain_layers = peft.make_peft(settings, dataclasses.replace(MODEL, scan_layers="off"))
    assert peft.count_trained(scanned) == peft.count_trained(plain_layers)
    base, start = peft.init(scanned, params(), jax.random.key(1))
    trained = random_like(start.trained, 5, 0.3)

    @jax.jit
    def gradients(trained):
        apply = peft.bind(scanned, functools.partial(models.apply, config))

        def total(trained):
            logits = apply(variables(base, start._replace(trained=trained)), BATCH)[0]
            return (logits**2).sum(), logits

        return jax.grad(total, has_aux=True)(trained)

    found, logits = gradients(trained)
    merged = peft.merge(scanned, base, start._replace(trained=trained))
    assert error(plain()(merged), logits) < 1e-5
    stack = found["layers"]["block_0"]["attention"]
    for leaf in stack["value"].values():
        assert abs(leaf[0]).max() == 0 and abs(leaf[1]).max() > 0
    if method != "adalora":
        b = stack["query"]["lora_b"]
        assert abs(b[1, 2:]).max() == 0 and abs(b[1, :2]).max() > 0 and abs(b[0, 2:]).max() > 0


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"targets": ("attention/qeury",)}, r"peft.targets: 'attention/qeury'.*did you mean"),
        ({"exclude": ("nothing",)}, "peft.exclude: 'nothing' matches no module"),
        ({"rank_pattern": ("query",)}, "no 'PATTERN=NUMBER'"),
        ({"rank_pattern": ("query=-1",)}, "no 'PATTERN=NUMBER'"),
        ({"method": "lara"}, "choose none or one of lora, "),
        ({"method": "vera", "init": "pissa"}, "peft.init='pissa' is not for peft.method='vera'"),
        ({"method": "dora", "bias": True}, "peft.bias is for LoRA"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings, message):
    settings = {"method": "lora"} | settings
    with pytest.raises(ConfigError, match=message) as raised:
        peft.count_trained(peft.make_peft(PeftConfig(**settings), MODEL))
    assert "\n" not in str(raised.value)
