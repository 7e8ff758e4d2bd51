"""What each method of peft keeps of a module, in its names and layouts, and in ours.

A `Codec` has two directions for one module: our leaves of its sites to tensors by the end of their
name, and back. Ours are [in, out], theirs (out, in); see `peft_format` for what is around it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jgpt.interop.description import InteropError
from jgpt.interop.peft_format_modules import Module

Leaves = Mapping[str, np.ndarray]
"""Of one site, float32, masked columns cut off."""
Tensors = dict[str, np.ndarray]
"""Of one module, by what follows its name."""
Parts = Mapping[str, Leaves]
"""Site path -> its leaves; sites that are not adapted are not there."""


@dataclass(frozen=True)
class Codec:
    """A method's tensors of one module."""

    kind: str
    """`peft_type`"""
    write: Callable[[Module, Parts], tuple[Tensors, float]]
    """(tensors, s of LoRA's kin)"""
    read: Callable[[Module, Leaves, float], dict[str, dict[str, np.ndarray]]]
    """(module, tensors by what follows its name, s) -> leaves by site, `scaling` among them"""
    endings: tuple[str, ...]
    """what may follow a module's name"""


# --- LoRA, DoRA ----------------------------------------------------------------------------------


def write_lora(module: Module, parts: Parts) -> tuple[Tensors, float]:
    a, b, s = _joined(module, parts)
    if module.kind == "embedding":
        return {"lora_embedding_A": a.T, "lora_embedding_B": b}, s
    tensors = {"lora_A.weight": a.T, "lora_B.weight": b}
    if any("lora_bias" in own for own in parts.values()):
        tensors["lora_B.bias"] = _vector(module, parts, "lora_bias", s)
    if any("magnitude" in own for own in parts.values()):
        if len(parts) < len(module.sites):
            raise InteropError(
                f"{module.name} holds {', '.join(module.sites)} fused, of which DoRA adapts some "
                "only; adapt all of them (peft.targets), or merge"
            )
        tensors["lora_magnitude_vector"] = _vector(module, parts, "magnitude", None)
    return tensors, s


def _joined(module: Module, parts: Parts) -> tuple[np.ndarray, np.ndarray, float]:
    """(A [in, r], B (out, r), s): of a fused module its sites' side by side, each with its rows."""
    first = parts[next(iter(parts))]
    scales = {float(own["scaling"][0]) for own in parts.values()}
    common = len(parts) == len(module.sites) and len(scales) == 1
    same = all(np.array_equal(own["lora_a"], first["lora_a"]) for own in parts.values())
    if common and same:
        b = module.join([parts[site]["lora_b"] for site in module.sites])
        return first["lora_a"], b, scales.pop()
    widths = [len(own["scaling"]) for own in parts.values()]
    s = scales.pop() if len(scales) == 1 else 1.0
    blocks, start = [], 0
    for site, (_, out) in zip(module.sites, module.shapes, strict=True):
        block = np.zeros((sum(widths), out), np.float32)
        if site in parts:
            own = parts[site]
            width = len(own["scaling"])
            block[start : start + width] = own["lora_b"] * (own["scaling"][0] / s)
            start += width
        blocks.append(block)
    a = np.concatenate([parts[site]["lora_a"] for site in module.sites if site in parts], axis=1)
    return a, module.join(blocks), s


def _vector(module: Module, parts: Parts, name: str, s: float | None) -> np.ndarray:
    """(out,) of vectors of the sites, 0 where one has none; with `s`, as if s scaled all."""
    vectors = []
    for site, (_, out) in zip(module.sites, module.shapes, strict=True):
        own = parts.get(site, {})
        factor = 1.0 if s is None or name not in own else own["scaling"][0] / s
        vectors.append((own.get(name, np.zeros(out, np.float32)) * factor)[None])
    return module.join(vectors)[:, 0]


def read_lora(module: Module, tensors: Leaves, s: float) -> dict[str, dict[str, np.ndarray]]:
    names = ("lora_A.weight", "lora_B.weight")
    if module.kind == "embedding":
        names = ("lora_embedding_A", "lora_embedding_B")
    missing = [name for name in names if name not in tensors]
    if missing:
        raise InteropError(f"{module.name} has no {missing[0]}; fetch the adapters again")
    a, whole = tensors[names[0]].T, tensors[names[1]]
    found = {}
    untouched = not np.any(whole)
    for site, b in zip(module.sites, module.split(whole), strict=True):
        used = np.ones(len(b), bool) if untouched or not module.fused else np.any(b != 0, axis=1)
        if used.any():  # a part whose B is 0 while others' is not was not adapted
            scaling = np.full(used.sum(), s, np.float32)
            found[site] = {"lora_a": a[:, used], "lora_b": b[used], "scaling": scaling}
    for theirs, ours in (("lora_B.bias", "lora_bias"), ("lora_magnitude_vector", "magnitude")):
        if theirs in tensors:
            split = module.split(tensors[theirs].reshape(-1, 1))
            for site, vector in zip(module.sites, split, strict=True):
                if site in found:
                    found[site][ours] = vector[0]
    return found


# --- AdaLoRA -------------------------------------------------------------------------------------


def write_adalora(module: Module, parts: Parts) -> tuple[Tensors, float]:
    _refuse_fused(module, "AdaLoRA")
    own = parts[module.sites[0]]
    kept = own["lora_e"] != 0
    kept[0] |= not kept.any()  # peft has no module of rank 0
    b = module.join([own["lora_b"][kept]])
    return {
        "lora_A": own["lora_a"].T[kept],
        "lora_E": own["lora_e"][kept][:, None],
        "lora_B": b,
    }, float(own["scaling"][0])


def read_adalora(module: Module, tensors: Leaves, s: float) -> dict[str, dict[str, np.ndarray]]:
    _refuse_fused(module, "AdaLoRA")
    e = tensors["lora_E"].reshape(-1)
    leaves = {
        "lora_a": tensors["lora_A"].T,
        "lora_e": e,
        "lora_b": module.split(tensors["lora_B"])[0],
        "scaling": np.full(len(e), s, np.float32),
    }
    return {module.sites[0]: leaves}


def _refuse_fused(module: Module, what: str) -> None:
    if module.fused:
        raise InteropError(
            f"{module.name} holds {', '.join(module.sites)} fused, which {what} has no words for; "
            "write the adapters as plain LoRA (--as_lora), or merge"
        )


# --- VeRA, IA3 -----------------------------------------------------------------------------------


def write_vera(module: Module, parts: Parts) -> tuple[Tensors, float]:
    _refuse_fused(module, "VeRA")
    own = parts[module.sites[0]]
    return {"vera_lambda_d": own["vera_d"], "vera_lambda_b": own["vera_b"]}, 1.0


def read_vera(module: Module, tensors: Leaves, s: float) -> dict[str, dict[str, np.ndarray]]:
    _refuse_fused(module, "VeRA")
    own = {"vera_d": tensors["vera_lambda_d"], "vera_b": tensors["vera_lambda_b"]}
    return {module.sites[0]: {name: vector.reshape(-1) for name, vector in own.items()}}


def write_ia3(module: Module, parts: Parts) -> tuple[Tensors, float]:
    own = parts[next(iter(parts))]
    if "input_scale" in own:
        return {"ia3_l": own["input_scale"][None]}, 1.0
    scales = [
        parts[site]["output_scale"] if site in parts else np.ones(out, np.float32)
        for site, (_, out) in zip(module.sites, module.shapes, strict=True)
    ]
    return {"ia3_l": module.join([scale[None] for scale in scales])}, 1.0


def read_ia3(module: Module, tensors: Leaves, s: float) -> dict[str, dict[str, np.ndarray]]:
    scale = tensors["ia3_l"]
    of_input = scale.shape[0] == 1 and scale.shape[1] > 1
    is_down = module.sites[0].endswith("/down")
    if of_input != is_down:
        what = "input" if of_input else "output"
        raise InteropError(
            f"{module.name} has its {what} scaled, where ours scales the input of `down` maps and "
            "the output of all others; merge the adapters with peft"
        )
    if of_input:
        return {module.sites[0]: {"input_scale": scale[0]}}
    split = module.split(scale)
    return {
        site: {"output_scale": part[0]}
        for site, part in zip(module.sites, split, strict=True)
        if not module.fused or np.any(part != 1) or not np.any(scale != 1)
    }


LORA = Codec(
    "LORA",
    write_lora,
    read_lora,
    (
        "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector",
        "lora_embedding_A", "lora_embedding_B",
    ),
)  # fmt: skip
ADALORA = Codec("ADALORA", write_adalora, read_adalora, ("lora_A", "lora_B", "lora_E"))
VERA = Codec("VERA", write_vera, read_vera, ("vera_lambda_b", "vera_lambda_d"))
IA3 = Codec("IA3", write_ia3, read_ia3, ("ia3_l",))
CODECS = {codec.kind: codec for codec in (LORA, ADALORA, VERA, IA3)}
"""By `peft_type`."""
OF_METHOD = {
    "lora": LORA, "rslora": LORA, "lora_plus": LORA, "lora_fa": LORA, "dora": LORA,
    "adalora": ADALORA, "vera": VERA, "ia3": IA3,
}  # fmt: skip
"""By `peft.method`; PiSSA, OLoRA and LoftQ are written as plain LoRA on the original model."""


def ending_of(name: str, endings: Sequence[str]) -> tuple[str, str] | None:
    """(module, ending) of a tensor's name; None where it is none of the method's."""
    for ending in endings:
        if name.endswith(f".{ending}"):
            return name.removesuffix(f".{ending}"), ending
    return None
