"""Parity, cost and pitfalls of `state/zero_by_path`."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linen2nnx import Pair
from linen2nnx.cost.forward import Edited, plain_apply, plain_layers
from linen2nnx.suite.entry import Entry, variables_of_seed
from linen2nnx.suite.problem import Compare, Edit, Mistake, Problem
from linen_impl.state import zero_by_path as linen
from nnx_impl.state import zero_by_path as nnx_side

EXPECTED = [
    {
        "flax": "<0.12.0",
        "modes": ["graph"],
        "verdict": "not there yet",
        "cause": "the tests use nnx.List, since 0.12.0",
    },
]


class LinenBlock(nn.Module):
    """Two collections, and kernels below the top level."""

    features: int

    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = nn.Dense(self.features, name=f"layers_{i}")(x)
        return nn.BatchNorm(use_running_average=True, name="norm")(x)


class NNXBlock(nnx.Module):
    def __init__(self, features, *, rngs):
        self.layers = nnx.List(
            nnx.Linear(features, features, rngs=rngs) for _ in range(2)
        )
        self.norm = nnx.BatchNorm(features, use_running_average=True, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def dense(din, features):
    return Pair(nn.Dense(features), partial(nnx.Linear, din, features), [(din,)])


def block(features):
    return Pair(LinenBlock(features), partial(NNXBlock, features), [(features,)])


def zeroed(layers):
    return [(jnp.zeros_like(kernel), bias) for kernel, bias in layers]


def zero_kernels(*changes):
    return Edit(linen.zero_kernels, nnx_side.zero_kernels, changes=changes)


problem = Problem(
    linen,
    nnx_side,
    pair=dense,
    sizes=[(1, 33), (5, 5)],
    compared={
        "zero_kernels": Compare(sizes=[(1, 33)], edit=zero_kernels("params/kernel")),
        "zero_kernels_of_a_nested_model": Compare(
            pair=block,
            sizes=[(5,), (5,)],
            edit=zero_kernels("params/layers_0/kernel", "params/layers_1/kernel"),
        ),
        "set_bias_to_ones": Edit(
            linen.set_bias_to_ones, nnx_side.set_bias_to_ones, changes=["params/bias"]
        ),
        "zero_params": Compare(
            pair=block,
            sizes=[(5,), (5,)],
            edit=Edit(linen.zero_params, nnx_side.zero_params),
        ),
    },
    entry=Entry(
        name="state_zero_kernel",
        arguments={"features": 2},
        sizes=((1, 33), (33, 1), (5, 5)),
        start=variables_of_seed(dense),
        limit=lambda variables, x: plain_apply(
            [
                (kernel, jnp.ones_like(bias))
                for kernel, bias in zeroed(plain_layers(variables))
            ],
            x,
        ),
    ),
    cost=Edited(
        linen=linen.zero_kernels,
        nnx={"split/map/merge": nnx_side.zero_kernels},
        plain=zeroed,
        size=lambda layers: (32, 32),
    ),
    mistakes=[
        Mistake("nnx", '"kernel" in names', '"bias" in names', "zero_kernels"),
        Mistake("nnx", '"kernel" in names', '"value" in names', "zero_kernels"),
        Mistake(
            "nnx",
            "return nnx.merge(graphdef, state)",
            "return model",
            "zero_kernels",
        ),
        Mistake("nnx", "nnx.Param, ...)", "nnx.BatchStat, ...)", "zero_params"),
        Mistake("linen", "zeros_like(leaf) if", "ones_like(leaf) if", "zero_kernels"),
        Mistake(
            "linen",
            'jnp.ones_like(params["bias"])',
            'jnp.zeros_like(params["bias"])',
            "set_bias_to_ones",
        ),
    ],
)
TestZeroByPath = problem.tests()


def test_zero_params_shares_no_variable_with_the_original():
    model = block(5).model
    new = nnx_side.zero_params(model)
    new.norm.mean[...] = jnp.zeros(5)
    assert np.all(model.norm.mean[...] > 0)


def test_linen_entry_from_its_own_seed():
    output = linen.state_zero_kernel(7, np.arange(5.0), 5)
    np.testing.assert_array_equal(output, np.ones(5))


def test_pitfall_a_map_without_the_path_zeroes_the_bias_too():
    """A map without the path zeroes the bias too

    `jax.tree.map(jnp.zeros_like, ...)` takes every leaf, on both sides.
    """
    pair = dense(5, 5)
    state = jax.tree.map(jnp.zeros_like, nnx.state(pair.model))
    assert not np.any(state["bias"])
    assert not np.any(jax.tree.map(jnp.zeros_like, pair.variables)["params"]["bias"])


def test_pitfall_the_last_key_of_an_nnx_path_is_value():
    """The last key of an nnx path is `.value`

    `path[-1]` is the name of the leaf in Linen: `['kernel']`. In nnx the path is
    `['kernel'].value`, so a test on `path[-1]` never sees the name.
    """
    pair, keystr = dense(5, 5), jax.tree_util.keystr
    state = nnx.state(pair.model)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert [keystr(path) for path in paths] == ["['bias'].value", "['kernel'].value"]
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(pair.variables)]
    assert [keystr(path[-1:]) for path in paths] == ["['bias']", "['kernel']"]


def test_pitfall_a_state_cannot_be_called():
    """`TypeError: 'State' object is not callable`

    A state is data. Merge it first: `nnx.merge(graphdef, state)(x)`.
    """
    pair = dense(5, 5)
    model, (x,) = pair.model, pair.arrays
    graphdef, state = nnx.split(model)
    with pytest.raises(TypeError, match="'State' object is not callable"):
        state(x)
    np.testing.assert_array_equal(nnx.merge(graphdef, state)(x), model(x))


def test_pitfall_merging_an_unmapped_part_shares_its_variables():
    """Merging an unmapped part shares its Variables

    After `graphdef, params, rest = nnx.split(model, nnx.Param, ...)` and a map over
    `params`, only the mapped part is new. The merged model's batch statistics, in
    `rest`, are the Variables of the original. `nnx.merge(..., copy=True)` makes them
    new too.
    """
    model = block(5).model
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params = jax.tree.map(jnp.zeros_like, params)
    assert nnx.merge(graphdef, params, rest).norm.mean is model.norm.mean
    assert nnx.merge(graphdef, params, rest, copy=True).norm.mean is not model.norm.mean
