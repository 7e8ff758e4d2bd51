"""Rules over trees: first match wins, full coverage, every rule used; partition and merge."""

import jax.numpy as jnp
import pytest

from jgpt import trees

TREE = {"embedding": {"table": jnp.ones((3, 2))}, "layers": [{"kernel": jnp.ones(4)}]}


def test_first_matching_rule_wins():
    values = trees.match_rules([("table$", 0.0), ("layers", 1.0), (".*", 2.0)], TREE, [".*"])
    assert values == {"embedding": {"table": 0.0}, "layers": [{"kernel": 1.0}]}


def test_a_leaf_without_a_rule_and_a_rule_without_a_leaf_are_refused():
    with pytest.raises(ValueError, match="no rule matches 'layers/0/kernel'"):
        trees.match_rules([("embedding", 1)], TREE)
    with pytest.raises(ValueError, match="match no leaf"):
        trees.match_rules([("embeding", 0), (".*", 1)], TREE)


def test_partition_and_merge_are_inverse():
    keep = trees.map_with_path(lambda path, _: "kernel" in path, TREE)
    kept, rest = trees.partition(TREE, keep)
    assert kept["embedding"]["table"] is None
    assert rest["layers"][0]["kernel"] is None
    merged = trees.merge(kept, rest)
    assert trees.leaves_by_path(merged).keys() == trees.leaves_by_path(TREE).keys()


def test_counts_and_table():
    assert trees.count(TREE) == 10
    assert trees.size_in_bytes(TREE) == 40
    assert trees.table(TREE).splitlines() == [
        "embedding/table  (3, 2)  float32  6",
        "layers/0/kernel  (4,)  float32  4",
        "total  10",
    ]
