"""The words in which a family of models is described: rows of settings, rows of tensors.

A `Family` is data: how the fields of `config.json` correspond to `ModelConfig` (`settings`), and
how the tensors in the files correspond to our parameters (`tensors`). Both are read in either
direction, so a family that loads also exports. `jgpt.interop.families` holds one small file each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jgpt.config import ConfigError, ModelConfig
from jgpt.interop.transforms import SAME, TRANSPOSED, Transform


class InteropError(ConfigError):
    """A folder cannot be read or a model not written; one line that says what and the remedy."""


REQUIRED = object()
"""As a default: the field must be in `config.json`."""


class Setting(Protocol):
    """A row of `Family.settings`: some of their fields, some of ours."""

    def read(self, theirs: Mapping[str, Any], ours: dict[str, Any]) -> None:
        """Puts what `config.json` says into `ours`, a nested dict of `ModelConfig` fields."""

    def write(self, model: ModelConfig, theirs: dict[str, Any]) -> None:
        """Puts what the model is into `theirs`, the `config.json` to be."""


@dataclass(frozen=True)
class Field:
    """The same value under two names.

    Attributes:
        ours: name in `ModelConfig`, dotted below `moe` and the like.
        theirs: name in `config.json`.
        default: what the other library takes where the file has no such field.
        none: our value for their null.
        also: another name of theirs, read where the first is not there and written beside it.
    """

    ours: str
    theirs: str
    default: Any = REQUIRED
    none: Any = None
    also: str = ""

    def read(self, theirs: Mapping[str, Any], ours: dict[str, Any]) -> None:
        name = self.also if self.also in theirs and self.theirs not in theirs else self.theirs
        value = field(theirs, name, self.default)
        put(ours, self.ours, self.none if value is None else value)

    def write(self, model: ModelConfig, theirs: dict[str, Any]) -> None:
        value = get(model, self.ours)
        for name in filter(None, (self.theirs, self.also)):
            theirs[name] = None if value == self.none else value


@dataclass(frozen=True)
class Choice:
    """Their value decides some of our settings; the first row that fits ours is written.

    Attributes:
        theirs: name in `config.json`.
        rows: (their value, our settings by dotted name) in order.
        default: as of `Field`.
    """

    theirs: str
    rows: tuple[tuple[Any, Mapping[str, Any]], ...]
    default: Any = REQUIRED

    def read(self, theirs: Mapping[str, Any], ours: dict[str, Any]) -> None:
        value = field(theirs, self.theirs, self.default)
        for known, settings in self.rows:
            if value == known:
                for name, setting in settings.items():
                    put(ours, name, setting)
                return
        known = ", ".join(repr(row[0]) for row in self.rows)
        raise InteropError(f"config.json: {self.theirs} {value!r} is not supported; known: {known}")

    def write(self, model: ModelConfig, theirs: dict[str, Any]) -> None:
        fitting = [
            known
            for known, settings in self.rows
            if all(get(model, name) == value for name, value in settings.items())
        ]
        theirs[self.theirs] = fitting[0] if fitting else self.rows[0][0]


@dataclass(frozen=True)
class Always:
    """Settings of ours that every model of the family has, and `config.json` does not mention."""

    settings: Mapping[str, Any]

    def read(self, theirs: Mapping[str, Any], ours: dict[str, Any]) -> None:
        for name, value in self.settings.items():
            put(ours, name, value)

    def write(self, model: ModelConfig, theirs: dict[str, Any]) -> None:
        pass


def only(theirs: str, *values: Any, default: Any = REQUIRED) -> Choice:
    """A field that must have one of these values (the first is written): others change the model.

    Without a default the field may be absent, which then means the first value.
    """
    default = values[0] if default is REQUIRED else default
    return Choice(theirs, tuple((value, {}) for value in values), default)


def field(theirs: Mapping[str, Any], name: str, default: Any = REQUIRED) -> Any:
    """A field of `config.json`, or its default.

    Raises:
        InteropError: it is not there and has no default.
    """
    value = theirs.get(name, default)
    if value is REQUIRED:
        raise InteropError(f"config.json has no field {name!r}; fetch the complete file")
    return value


def put(settings: dict[str, Any], name: str, value: Any) -> None:
    """Sets a dotted name in nested dicts."""
    *sections, last = name.split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
    settings[last] = value


def get(model: ModelConfig, name: str) -> Any:
    """The value of a dotted name."""
    value = model
    for part in name.split("."):
        value = getattr(value, part)
    return value


@dataclass(frozen=True)
class Tensor:
    """One tensor of theirs, and the parameters of ours that it holds.

    Attributes:
        theirs: name in the files. `{i}` is the layer; with `{e}`, the expert, our parameter stacks
            one such tensor per expert along a new first axis.
        ours: path of our parameter, layers unrolled (`layers_{i}/attention/query/kernel`), or of
            several. Rows whose parameters a model does not have are not used. The pseudo-parameter
            `selection_bias/layers_{i}` is that layer's row of the router's selection bias.
        transform: how the one becomes the other.
    """

    theirs: str
    ours: tuple[str, ...]
    transform: Transform = SAME


def tensor(theirs: str, ours: str | Sequence[str], transform: Transform = SAME) -> Tensor:
    """A `Tensor` row; a single path need not be a tuple."""
    return Tensor(theirs, (ours,) if isinstance(ours, str) else tuple(ours), transform)


def linear(theirs: str, ours: str) -> tuple[Tensor, ...]:
    """Rows of a torch `Linear`: `weight` (out, in) is our kernel transposed; `bias` if used."""
    return (
        tensor(f"{theirs}.weight", f"{ours}/kernel", TRANSPOSED),
        tensor(f"{theirs}.bias", f"{ours}/bias"),
    )


def norm(theirs: str, ours: str) -> tuple[Tensor, ...]:
    """Rows of a norm: `weight` is our scale; `bias` where it is a LayerNorm."""
    return tensor(f"{theirs}.weight", f"{ours}/scale"), tensor(f"{theirs}.bias", f"{ours}/bias")


@dataclass(frozen=True)
class Family:
    """A family of models as another library writes it.

    Attributes:
        name: `model_type` in `config.json`.
        architecture: entry of `architectures` in `config.json`.
        settings: rows, read and written in order.
        tensors: rows; the first with a given path of ours describes it.
        ignored: regular expressions of names that hold no weights (old buffers); they may be left
            over.
        optional_prefix: start of names that some files leave out.
        constants: further fields of a `config.json` that is written.
    """

    name: str
    architecture: str
    settings: tuple[Setting, ...]
    tensors: tuple[Tensor, ...]
    ignored: tuple[str, ...] = ()
    optional_prefix: str = ""
    constants: tuple[tuple[str, Any], ...] = ()
