"""Merge patches of documents: RFC 7396, and two patches in one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobapi.rules.documents import compose_patches, merge_patch


@pytest.mark.parametrize(
    ("target", "patch", "merged"),
    [  # The examples of RFC 7396, appendix A.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_is_that_of_the_standard(target: Any, patch: Any, merged: Any) -> None:
    assert merge_patch(target, patch) == merged


def test_merge_patch_leaves_its_arguments_alone() -> None:
    target, patch = {"a": {"b": 1}}, {"a": {"c": 2}}
    merge_patch(target, patch)
    assert (target, patch) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def patches() -> Any:
    leaf = st.none() | st.integers(0, 2) | st.just([1])
    value = st.recursive(leaf, lambda inner: objects(inner), max_leaves=6)
    return objects(value)


def objects(values: Any) -> Any:
    return st.dictionaries(st.sampled_from("abc"), values, max_size=3)


@given(patches(), patches(), patches())
def test_composed_patch_does_what_both_do_in_turn(target: Any, first: Any, second: Any) -> None:
    target = merge_patch(None, target)
    composed = compose_patches(first, second)
    if composed is not None:
        in_turn = merge_patch(merge_patch(target, first), second)
        assert merge_patch(target, composed) == in_turn


@pytest.mark.parametrize(
    ("first", "second", "composed"),
    [
        ({}, {"a": None}, {"a": None}),
        ({"a": 1}, {"a": None}, {"a": None}),
        ({"a": None}, {"a": 1}, {"a": 1}),
        ({"a": {"b": 1}}, {"a": {"c": 2}}, {"a": {"b": 1, "c": 2}}),
        ({"a": {"b": 1}}, {"a": {"b": None}}, {"a": {"b": None}}),
        ({"a": {"b": 1}}, {"a": [1]}, {"a": [1]}),
        # What the target has at a would be merged with it.
        ({"a": None}, {"a": {"b": 1}}, None),
        ({"a": 1}, {"a": {}}, None),
        ({"a": {"b": [1]}}, {"a": {"b": {"c": 1}}}, None),
    ],
)
def test_compose_patches_keeps_nulls_and_gives_none_where_impossible(
    first: Any, second: Any, composed: Any
) -> None:
    assert compose_patches(first, second) == composed
