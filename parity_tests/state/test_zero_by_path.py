import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linen2nnx import mapping, parity
from linen_impl.state import zero_by_path as linen
from nnx_impl.state import zero_by_path as nnx_side
from parity_tests.entry_inputs import entry_inputs
from parity_tests.random_pair import random_pair, variable_shapes

CASES = [  # din, features, seed, dtype, jit
    (1, 33, 0, jnp.float32, False),
    (5, 5, 1, jnp.bfloat16, True),
]


def create_model(din, features, seed=0):
    return nnx_side.create_model(din=din, features=features, rngs=nnx.Rngs(seed))


def pair(din, features, seed=0, dtype=jnp.float32):
    module = linen.create_model(features)
    return module, *random_pair(
        module, lambda: create_model(din, features), din, seed, dtype
    )


BLOCK_CASES = [(0, jnp.float32, False), (1, jnp.bfloat16, True)]  # seed, dtype, jit


class LinenBlock(nn.Module):
    """Two collections, and kernels below the top level."""

    features: int

    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = nn.Dense(self.features, name=f"layers_{i}")(x)
        return nn.BatchNorm(use_running_average=True, name="norm")(x)


class NNXBlock(nnx.Module):
    def __init__(self, din, features):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List(
            nnx.Linear(width, features, rngs=rngs) for width in (din, features)
        )
        self.norm = nnx.BatchNorm(features, use_running_average=True, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def block_pair(seed=0, dtype=jnp.float32):
    module = LinenBlock(5)
    return module, *random_pair(module, lambda: NNXBlock(5, 5), 5, seed, dtype)


def test_zero_kernels():
    """Op by op: the next test is jitted, and in bfloat16."""
    module, variables, model, x = pair(1, 33)
    edit = parity.Edit(linen.zero_kernels, nnx_side.zero_kernels, ["params/kernel"])
    parity.assert_parity(module, variables, model, x, edit=edit)


@pytest.mark.parametrize(("seed", "dtype", "jit"), BLOCK_CASES)
def test_zero_kernels_of_a_nested_model(seed, dtype, jit):
    module, variables, model, x = block_pair(seed, dtype)
    edit = parity.Edit(
        linen.zero_kernels,
        nnx_side.zero_kernels,
        ["params/layers_0/kernel", "params/layers_1/kernel"],
    )
    parity.assert_parity(module, variables, model, x, edit=edit, jit=jit)


@pytest.mark.parametrize(("din", "features", "seed", "dtype", "jit"), CASES)
def test_set_bias_to_ones(din, features, seed, dtype, jit):
    module, variables, model, x = pair(din, features, seed, dtype)
    edit = parity.Edit(
        linen.set_bias_to_ones, nnx_side.set_bias_to_ones, ["params/bias"]
    )
    parity.assert_parity(module, variables, model, x, edit=edit, jit=jit)


@pytest.mark.parametrize(("seed", "dtype", "jit"), BLOCK_CASES)
def test_zero_params(seed, dtype, jit):
    """Chosen by type: the statistics are no `nnx.Param`, whatever they are called."""
    module, variables, model, x = block_pair(seed, dtype)
    edit = parity.Edit(linen.zero_params, nnx_side.zero_params, ["params"])
    parity.assert_parity(module, variables, model, x, edit=edit, jit=jit)


def test_zero_params_shares_no_variable_with_the_original():
    _, _, model, _ = block_pair()
    new = nnx_side.zero_params(model)
    new.norm.mean[...] = jnp.zeros(5)
    assert np.all(model.norm.mean[...] > 0)


def test_state_zero_kernel(nnx_mode):
    for _, seed, x, features in entry_inputs(nnx_mode):
        model = create_model(len(x), int(features), int(seed))
        module = linen.create_model(int(features))
        variables = mapping.to_linen(model, variable_shapes(module, len(x)))

        output = nnx_side.state_zero_kernel(seed, x, features)

        parity.assert_equal(
            linen.state_zero_kernel(seed, x, features, variables=variables), output
        )
        kernel = jnp.zeros_like(model.kernel[...])
        bias = jnp.ones_like(model.bias[...])
        parity.assert_equal(jnp.dot(jnp.asarray(x, jnp.float32), kernel) + bias, output)


def test_linen_entry_from_its_own_seed():
    output = linen.state_zero_kernel(7, np.arange(5.0), 5)
    np.testing.assert_array_equal(output, np.ones(5))


def test_pitfall_a_map_without_the_path_zeroes_the_bias_too():
    """A map without the path zeroes the bias too

    `jax.tree.map(jnp.zeros_like, ...)` takes every leaf, on both sides.
    """
    _, variables, model, _ = pair(5, 5)
    state = jax.tree.map(jnp.zeros_like, nnx.state(model))
    assert not np.any(state["bias"])
    assert not np.any(jax.tree.map(jnp.zeros_like, variables)["params"]["bias"])


def test_pitfall_the_last_key_of_an_nnx_path_is_value():
    """The last key of an nnx path is `.value`

    `path[-1]` is the name of the leaf in Linen: `['kernel']`. In nnx the path is
    `['kernel'].value`, so a test on `path[-1]` never sees the name.
    """
    _, variables, model, _ = pair(5, 5)
    keystr = jax.tree_util.keystr
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(nnx.state(model))]
    assert [keystr(path) for path in paths] == ["['bias'].value", "['kernel'].value"]
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
    assert [keystr(path[-1:]) for path in paths] == ["['bias']", "['kernel']"]


def test_pitfall_a_state_cannot_be_called():
    """`TypeError: 'State' object is not callable`

    A state is data. Merge it first: `nnx.merge(graphdef, state)(x)`.
    """
    _, _, model, x = pair(5, 5)
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
    _, _, model, _ = block_pair()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params = jax.tree.map(jnp.zeros_like, params)
    assert nnx.merge(graphdef, params, rest).norm.mean is model.norm.mean
    assert nnx.merge(graphdef, params, rest, copy=True).norm.mean is not model.norm.mean
