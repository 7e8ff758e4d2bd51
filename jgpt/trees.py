"""Trees as data: leaf paths, ordered rules over them, partition, counts.

A rule list is `[(pattern, value), ...]`: the first pattern (a regular expression searched in the
leaf's `/`-joined path) that matches gives the leaf its value. Every leaf must be matched, and every
rule must be the first match of some leaf unless it is marked optional: a rule that matches nothing
is a mistake in a name, and is refused.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jgpt.typing import PyTree


def path_string(path: tuple) -> str:
    """`layers_0/attention/query/kernel` of a key path of `jax.tree_util`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """Every leaf by its path, in tree order."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_string(path): leaf for path, leaf in flat}


def map_with_path(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """`function(path, leaf)` at every leaf."""
    return jax.tree_util.tree_map_with_path(lambda p, x: function(path_string(p), x), tree)


def match_rules(
    rules: Sequence[tuple[str, Any]], tree: PyTree, optional: Sequence[str] = ()
) -> PyTree:
    """A tree of the same structure that holds each leaf's first matching rule's value.

    Args:
        rules: ordered (regular expression, value) pairs.
        tree: any tree.
        optional: patterns among `rules` that need not be used.

    Raises:
        ValueError: a leaf that no rule matches, or a rule that no leaf uses.
    """
    used: set[str] = set()

    def value(path: str, _: Any) -> Any:
        for pattern, result in rules:
            if re.search(pattern, path):
                used.add(pattern)
                return result
        raise ValueError(f"no rule matches {path!r}; add one to {[p for p, _ in rules]}")

    result = map_with_path(value, tree)
    unused = [p for p, _ in rules if p not in used and p not in optional]
    if unused:
        raise ValueError(f"rules {unused} match no leaf; correct the pattern or remove the rule")
    return result


def partition(tree: PyTree, keep: PyTree) -> tuple[PyTree, PyTree]:
    """(leaves where the same-shaped tree of bools `keep` is true, the rest); None elsewhere."""
    kept = jax.tree.map(lambda k, x: x if k else None, keep, tree)
    rest = jax.tree.map(lambda k, x: None if k else x, keep, tree)
    return kept, rest


def merge(first: PyTree, second: PyTree) -> PyTree:
    """Inverse of `partition`: each leaf from the tree in which it is not None."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None
    )


def count(tree: PyTree) -> int:
    """Numbers in all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def size_in_bytes(tree: PyTree) -> int:
    """Bytes of all leaves."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def table(tree: PyTree) -> str:
    """One line per leaf: path, shape, dtype, count; the sum last. The golden parameter tables."""
    lines = [
        f"{path}  {tuple(leaf.shape)}  {leaf.dtype}  {leaf.size:,}"
        for path, leaf in leaves_by_path(tree).items()
    ]
    return "\n".join([*lines, f"total  {count(tree):,}"]) + "\n"
