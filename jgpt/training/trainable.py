"""What a run trains of its model, and what lies beside it.

All parameters; some of them (`optimizer.rules` with `freeze`: feature extraction, the top blocks);
or adapters on a frozen model (`peft`), with whatever else `peft.train_also` names. The training
step differentiates by `TrainState.params` alone, so that gradients, moments and averages are those
of what is trained.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jgpt import models
from jgpt.config import Config, ConfigError, ModelConfig
from jgpt.models.layout import layout
from jgpt.objectives import Apply
from jgpt.peft import Adapters, Peft, adapter_axes, bind, hooks, init, make_peft, merge
from jgpt.peft.adapters import flat, nested
from jgpt.peft.quantization import Convert, converter, quantized, quantized_axes
from jgpt.peft.starts import SPLITS
from jgpt.training import forgetting
from jgpt.training.optimizer import parameter_groups
from jgpt.training.rules import Rule, read_rules, rule_of
from jgpt.training.state import ADAPTERS, Start, TrainState, joined, parted
from jgpt.trees import leaves_by_path, map_with_path
from jgpt.typing import Array, PyTree

HEADS = r"^(classifier|pooler)/"
"""Parameters of a new task, trained beside adapters whenever there are any."""


@dataclass(frozen=True)
class Trainable:
    """How the variables of a model are shared out."""

    model: ModelConfig
    peft: Peft | None = None
    rules: tuple[Rule, ...] = ()
    num_steps: int = 0
    """updates in the whole run"""
    ewc_weight: float = 0.0
    """of the penalty on leaving `TrainState.anchor`; 0 where there is none"""

    @property
    def everything(self) -> bool:
        return self.peft is None and not any(rule.freeze for rule in self.rules)

    @property
    def as_given(self) -> bool:
        """Whether `start` gives parameters back in arrays as they came, none cut or packed."""
        if self.peft is None:
            return self.everything
        return self.peft.settings.quantize == "none" or self.converter() is not None

    def apply(self) -> Apply:
        """`models.apply` of the model with whatever is added to it."""
        plain = partial(models.apply, self.model)
        return plain if self.peft is None else bind(self.peft, plain)

    def start(self, params: PyTree, key: Array) -> Start:
        """Where training begins.

        Args:
            params: the model's, all of them.
            key: of new adapters.
        """
        if self.peft is None:
            return Start(*self.cut(params), anchor=self._blank_anchor(params))
        base, adapters = init(self.peft, params, key)
        trained, frozen = self.cut(base)
        return Start(
            {**trained, ADAPTERS: adapters.trained},
            quantized(self.peft.settings, self.model, frozen),
            adapters.constants,
            hooks.init_state(self.peft, adapters.trained, self.num_steps),
            self._blank_anchor(params),
        )

    def converter(self) -> Convert | None:
        """What packs a frozen parameter as soon as it is read (`peft.quantize`).

        None where nothing is packed, and where the method splits the weights as they were before:
        `start` packs what it leaves.
        """
        if self.peft is None or self.peft.settings.init in SPLITS:
            return None
        pack = converter(self.peft.settings, self.model)
        if pack is None:
            return None

        def convert(path: str, leaf: Array) -> Any:
            trained = any(self.trains(place) for place in unrolled_paths(path, self.model))
            return leaf if trained else pack(path, leaf)

        return convert

    def axes(self) -> dict[str, PyTree]:
        """Logical axis names of every leaf of `params`, `frozen` and `constants`."""
        boxed = jax.tree.map(
            _Axes, models.logical_axes(self.model), is_leaf=lambda x: isinstance(x, tuple)
        )
        trained, frozen = self.cut(boxed)
        result = {"params": _names(trained), "frozen": _names(frozen), "constants": {}}
        if self.peft is not None:
            result["frozen"] = quantized_axes(self.abstract.frozen, result["frozen"])
            adapters = adapter_axes(self.peft)
            result["params"] = {**result["params"], ADAPTERS: adapters.trained}
            result["constants"] = adapters.constants
        held = _names(self.held(boxed))
        result["anchor"] = {"fisher": held, "weights": held} if self.ewc_weight else {}
        return result

    def trains(self, path: str) -> bool:
        """Whether the parameter at this path of the unrolled model is trained."""
        if self.peft is not None:
            patterns = (*self.peft.settings.train_also, HEADS)
            return any(re.search(pattern, path) for pattern in patterns)
        return not self.rules or not rule_of(path, self.rules).freeze

    def cut(self, params: PyTree) -> tuple[PyTree, PyTree]:
        """(what is trained, what is frozen) of a tree laid out like the parameters.

        Raises:
            ConfigError: trained layers of a stack that are not its last ones.
        """
        if self.everything:
            return params, {}
        trained, frozen = {}, {}
        for path, leaf in flat(params):
            flags = [self.trains(place) for place in unrolled_paths(path, self.model)]
            first = flags.index(True) if True in flags else len(flags)
            if not all(flags[first:]):
                raise ConfigError(
                    f"the trained layers of {path} are not the last ones of their stack; set "
                    "model.scan_layers to 'off'"
                )
            if first < len(flags):
                trained[path] = leaf if first == 0 else leaf[first:]
            if first > 0:
                frozen[path] = leaf if first == len(flags) else leaf[:first]
        return nested(trained), nested(frozen)

    def width_scales(self, params: PyTree) -> PyTree:
        """muP's factor of the learning rate of every leaf of `params` (of what is trained)."""
        own, adapters = parted(params)
        result = models.learning_rate_scales(self.model, own)
        if adapters is not None:
            result[ADAPTERS] = jax.tree.map(lambda _: 1.0, adapters)
        return result

    def rates(self, params: PyTree) -> PyTree:
        """What rules and the method multiply the learning rate of every leaf of `params` by.

        An array [layers, 1, ...] where layers of a stack differ.
        """
        own, adapters = parted(params)
        result = self._per_layer(own, lambda rule: rule.rate)
        if adapters is not None:
            result[ADAPTERS] = map_with_path(
                lambda path, _: self.peft.method.rates(path.rsplit("/", 1)[-1], self.peft.settings),
                adapters,
            )
        return result

    def decays(self, params: PyTree) -> PyTree:
        """The weight decay of every leaf of `params` where rules say so, None elsewhere."""
        own, _ = parted(params)
        result = self._per_layer(own, lambda rule: rule.decay)
        if ADAPTERS in params:
            result[ADAPTERS] = jax.tree.map(lambda _: None, params[ADAPTERS])
        return result

    def groups(self, params: PyTree) -> PyTree:
        """The group (`optimizer.GROUPS`) of every leaf of `params`; of adapters by their rank."""
        own, _ = parted(params)
        result = parameter_groups(own)
        if ADAPTERS in params:
            names = {
                name: "matrix"
                if len(leaf.shape) - (leaf.axes[:1] == ("experts",)) > 1
                else "vector"
                for leaves in self.peft.leaves.values()
                for name, leaf in leaves.items()
            }
            result[ADAPTERS] = map_with_path(
                lambda path, _: names[path.rsplit("/", 1)[-1]], params[ADAPTERS]
            )
        return result

    def _per_layer(self, params: PyTree, value: Callable[[Rule], float | None]) -> PyTree:
        """`value` of every leaf's rule."""

        def of(path: str, leaf: Any) -> Any:
            if self.peft is not None or not self.rules:
                return value(Rule(""))
            places = unrolled_paths(path, self.model)
            found = [value(rule_of(place, self.rules)) for place in places if self.trains(place)]
            if len(set(found)) == 1:
                return found[0]
            if None in found:
                raise ConfigError(
                    f"optimizer.rules give a decay to some layers of {path} and none to others; "
                    "give one to all of them"
                )
            return np.array(found, np.float32).reshape(-1, *(1,) * (len(leaf.shape) - 1))

        return map_with_path(of, params)

    @property
    def penalised(self) -> bool:
        """Whether something is added to the loss."""
        by_method = self.peft is not None and self.peft.method.regulariser is not None
        return by_method or self.ewc_weight > 0

    def penalty(self, params: PyTree, state: TrainState) -> Array:
        """What is added to the mean loss; differentiable in `params`, what is trained."""
        own, adapters = parted(params)
        if adapters is not None:
            adapters = Adapters(adapters, state.constants)
        total = jnp.zeros(())
        if self.peft is not None and self.peft.method.regulariser is not None:
            total += hooks.regulariser(self.peft, adapters)
        if self.ewc_weight:
            if adapters is not None:  # held is the model that they make, not they
                own = merge(self.peft, joined(own, state.frozen), adapters)
            total += forgetting.penalty(state.anchor, own, self.ewc_weight)
        return total

    def held(self, params: PyTree) -> PyTree:
        """The part of the model's parameters that EWC speaks of; {} where there is none.

        What is trained of them, or all that adapters may change; no head of a new task.
        """
        if not self.ewc_weight:
            return {}
        trained = params if self.peft is not None else self.cut(params)[0]
        return {name: tree for name, tree in trained.items() if not re.match(HEADS, f"{name}/")}

    def _blank_anchor(self, params: PyTree) -> PyTree:
        """Room for what `forgetting.read_anchor` reads."""
        if not self.ewc_weight:
            return {}

        def zeros() -> PyTree:
            return jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), self.held(params))

        return {"fisher": zeros(), "weights": zeros()}

    def gradient(self, gradients: PyTree, params: PyTree, constants: PyTree) -> PyTree:
        """The clipped gradients as the method wants the optimizer to have them."""
        if self.peft is None:
            return gradients
        adapters = Adapters(params[ADAPTERS], constants)
        changed = hooks.gradient(self.peft, gradients[ADAPTERS], adapters)
        return {**gradients, ADAPTERS: changed}

    def after_update(
        self, params: PyTree, constants: PyTree, gradients: PyTree, state: PyTree, step: Array
    ) -> tuple[PyTree, PyTree]:
        """(what is trained, the method's state) after update number `step`, the first being 1."""
        if self.peft is None:
            return params, state
        adapters = Adapters(params[ADAPTERS], constants)
        changed, state = hooks.after_update(
            self.peft, adapters, gradients[ADAPTERS], state, step, self.num_steps
        )
        return {**params, ADAPTERS: changed}, state

    @cached_property
    def abstract(self) -> Start:
        """Shapes of `start`; nothing is computed."""
        return jax.eval_shape(self.start, models.abstract_params(self.model), jax.random.key(0))


def make_trainable(config: Config) -> Trainable:
    """What `config.peft` and `config.optimizer.rules` say.

    Raises:
        ConfigError: rules that cannot be read, do not cover every parameter or match none; a method
            that does not fit the model.
    """
    fitted = None if config.peft.method == "none" else make_peft(config.peft, config.model)
    rules = read_rules(config.optimizer.rules)
    if rules and fitted is None:
        paths = [
            place
            for path in leaves_by_path(models.abstract_params(config.model))
            for place in unrolled_paths(path, config.model)
        ]
        check_rules(rules, paths)
    return Trainable(config.model, fitted, rules, config.train.steps, _ewc_weight(config, fitted))


def _ewc_weight(config: Config, fitted: Peft | None) -> float:
    if not config.forgetting.ewc:
        return 0.0
    if fitted is not None and (fitted.method.merge is None or config.peft.quantize != "none"):
        what = f"peft.method={config.peft.method!r}"
        what = what if fitted.method.merge is None else f"peft.quantize={config.peft.quantize!r}"
        raise ConfigError(
            f"forgetting.ewc needs to know how far each weight has moved, which {what} does not "
            "say; leave forgetting.ewc empty, or use peft.method='lora' on whole weights"
        )
    return config.forgetting.ewc_weight


def check_rules(rules: tuple[Rule, ...], paths: list[str]) -> None:
    """Every parameter has a rule, and every rule parameters.

    Raises:
        ConfigError: otherwise.
    """
    used = {rule_of(path, rules).pattern for path in paths}
    unused = [rule.pattern for rule in rules if rule.pattern not in used]
    if unused:
        raise ConfigError(
            f"optimizer.rules: {unused[0]!r} is the first match of no parameter; correct or remove "
            "it"
        )


def unrolled_paths(path: str, config: ModelConfig) -> list[str]:
    """Paths in the unrolled model of the parameters in the array at `path`, in its order."""
    prefix, place = "", path
    if path.startswith("encoder/layers/"):
        prefix, place, config = "encoder/", path.removeprefix("encoder/"), config.encoder
    if not place.startswith("layers/"):
        return [path]
    _, block, rest = place.split("/", 2)
    where, index = layout(config), int(block.removeprefix("block_"))
    return [f"{prefix}layers_{where.layer(p, index)}/{rest}" for p in range(where.periods)]


@dataclass(frozen=True)
class _Axes:
    """The names of one array's axes; a slice of the array has the same."""

    names: tuple[str | None, ...]

    def __getitem__(self, _: slice) -> "_Axes":
        return self


def _names(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda axes: axes.names, tree)
