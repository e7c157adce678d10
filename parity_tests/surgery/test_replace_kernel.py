"""Parity, cost and pitfalls of `surgery/replace_kernel`."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze

from linen2nnx import Pair, parity
from linen2nnx.cost.forward import Edited, plain_apply, plain_layers
from linen2nnx.suite.entry import Entry, variables_of_seed
from linen2nnx.suite.problem import Compare, Edit, Mistake, Problem
from linen_impl.surgery import replace_kernel as linen
from nnx_impl.surgery import replace_kernel as nnx_side
from parity_tests.two_models import edit_target, two_models

EXPECTED = [
    {
        "flax": "<0.12.1",
        "modes": ["graph"],
        "verdict": "not there yet",
        "cause": "the page shows Variable.set_value, since 0.12.1",
    },
]


def dense(din, features):
    return Pair(nn.Dense(features), partial(nnx.Linear, din, features), [(din,)])


def donor_and_model(din, features):
    return two_models(dense(din, features), dense(din, features))


def replaced(layers, value):
    [(kernel, bias)] = layers
    return [(jnp.full_like(kernel, value), bias)]


def assign_kernel(model):
    nnx_side.set_kernel(model, 0.5)
    return model


def map_kernel(model):
    def replace(path, leaf):
        return jnp.full_like(leaf, 0.5) if path[0].key == "kernel" else leaf

    graphdef, state = nnx.split(model)
    state = jax.tree_util.tree_map_with_path(replace, state)
    return nnx.merge(graphdef, state)


problem = Problem(
    linen,
    nnx_side,
    pair=dense,
    sizes=[(1, 33), (5, 5)],
    compared={
        "set_kernel": Edit(
            linen.set_kernel, nnx_side.set_kernel, -1.25, changes=["params/kernel"]
        ),
        "copy_kernel": Compare(
            pair=donor_and_model,
            edit=edit_target(linen.copy_kernel, nnx_side.copy_kernel, ["kernel"]),
        ),
    },
    entry=Entry(
        name="replace_kernel",
        arguments={"features": 2, "replacement_value": 0.5},
        sizes=((1, 33), (33, 1), (5, 5)),
        start=variables_of_seed(dense),
        limit=lambda variables, x, value: plain_apply(
            replaced(plain_layers(variables), value), x
        ),
    ),
    cost=Edited(
        linen=lambda variables: linen.set_kernel(variables, 0.5),
        nnx={"attribute assignment": assign_kernel, "split/map/merge": map_kernel},
        plain=lambda layers: replaced(layers, 0.5),
        size=lambda layers: (32, 32),
    ),
    mistakes=[
        Mistake(
            "nnx",
            "full_like(model.kernel[...], value)",
            "zeros_like(model.kernel[...])",
            "set_kernel",
        ),
        Mistake(
            "nnx",
            "model.kernel = nnx.Param(kernel)",
            "model.bias = nnx.Param(kernel)",
            "set_kernel",
        ),
        Mistake(
            "nnx",
            "model.kernel = nnx.Param(kernel)",
            "model.kernel = kernel",
            "set_kernel",
        ),
        Mistake("nnx", "model.kernel = nnx.Param(kernel)", "pass", "set_kernel"),
        Mistake("nnx", "donor.kernel[...]", "model.kernel[...]", "copy_kernel"),
        Mistake(
            "linen", '"params": params', '"params": {"kernel": kernel}', "set_kernel"
        ),
        Mistake(
            "linen",
            'params = {**variables["params"], "kernel": kernel}',
            'params = {**variables["params"], "bias": kernel[0]}',
            "set_kernel",
        ),
        Mistake(
            "linen",
            'donor["params"]["kernel"]',
            '-donor["params"]["kernel"]',
            "copy_kernel",
        ),
    ],
)
TestReplaceKernel = problem.tests()


def test_linen_entry_from_its_own_seed():
    """Without variables the kernel is replaced too: x sums to 10, the bias is 0."""
    output = linen.replace_kernel(7, np.arange(5.0), 5, 0.5)
    np.testing.assert_array_equal(output, np.full(5, 5.0))


def test_pitfall_raw_array_is_not_trained():
    """`model.kernel = array` leaves the kernel untrained

    The assignment replaces the Param by a plain array. The model still runs, but
    `nnx.state(model, nnx.Param)` no longer holds the kernel and the optimizer leaves it
    as it is. Write `model.kernel = nnx.Param(array)`.
    """
    pair = dense(5, 5)
    model, (x,) = pair.model, pair.arrays
    model.kernel = jnp.ones((5, 5))
    before = model(x)  # still runs

    params = nnx.state(model, nnx.Param)
    assert list(params) == ["bias"]
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, params))
    np.testing.assert_array_equal(model.kernel, jnp.ones((5, 5)))
    assert not np.array_equal(model(x), before)  # only the bias moved


def test_pitfall_indexed_assignment_broadcasts_and_keeps_the_dtype():
    """`model.kernel[...] = array` broadcasts and keeps the old dtype

    Two values assigned to a kernel of shape (3, 2) fill all three rows. A bfloat16
    array assigned to a float32 Param is stored as float32.
    """
    model = dense(5, 5).model
    with jax.numpy_dtype_promotion("standard"):
        model.kernel[...] = jnp.asarray([1, 2, 3, 4, 5], jnp.bfloat16)
    assert (model.kernel.shape, model.kernel.dtype) == ((5, 5), jnp.float32)
    np.testing.assert_array_equal(model.kernel[...], [[1, 2, 3, 4, 5]] * 5)


def test_pitfall_set_value_takes_the_new_shape_and_dtype():
    """`model.kernel.set_value(array)` takes any shape and dtype

    It replaces what the Param holds: a float32 kernel of shape (3, 2) becomes a
    bfloat16 array of shape (2,), and nothing is checked.
    """
    model = dense(5, 5).model
    model.kernel.set_value(jnp.ones(2, jnp.bfloat16))
    assert (model.kernel.shape, model.kernel.dtype) == ((2,), jnp.bfloat16)


def test_pitfall_flipped_kernel_fails_only_at_the_call():
    """`TypeError: dot_general requires contracting dimensions to have the same shape`

    A kernel of flipped shape. The assignment is accepted; the error comes at the next
    call of the model. A kernel has shape (din, features) on both sides.
    """
    pair = dense(1, 33)
    model = pair.model
    model.kernel = nnx.Param(jnp.ones((33, 1)))  # no error yet
    with pytest.raises(TypeError, match="contracting dimensions"):
        model(*pair.arrays)


def test_pitfall_flipped_square_kernel_is_silent():
    """A flipped square kernel gives no error

    The shapes fit and the output is wrong. `parity.assert_parity` finds it: its
    `ParityError` names `params/kernel`.
    """
    pair = dense(5, 5)
    model = pair.model
    model.kernel = nnx.Param(model.kernel[...].T)
    with pytest.raises(parity.ParityError, match="params/kernel"):
        parity.assert_parity(pair.linen, pair.variables, model, *pair.arrays)


def test_pitfall_float64_array_stays_float64_in_a_param():
    """A numpy float64 array stays float64 in the Param

    `nnx.Param(np.ones((3, 2)))` keeps the numpy array, of dtype float64, in the state,
    while 32-bit JAX computes in float32. Write `nnx.Param(jnp.asarray(array))`.
    """
    pair = dense(5, 5)
    model, (x,) = pair.model, pair.arrays
    float64 = np.ones((5, 5))
    model.kernel = nnx.Param(float64)
    assert model.kernel.dtype == np.float64  # a numpy array in the state
    with jax.numpy_dtype_promotion("standard"):
        assert model(x).dtype == jnp.float32  # while 32-bit JAX computes in float32
    model.kernel = nnx.Param(jnp.asarray(float64))
    assert model.kernel.dtype == jnp.float32


def test_pitfall_value_is_deprecated():
    """`DeprecationWarning: '.value' access is now deprecated`

    Reading `.value` and assigning to it both warn. Read with `variable[...]` or
    `variable.get_value()`; write with `variable[...] = value` or
    `variable.set_value(value)`, which differ as the two entries above say.
    """
    model = dense(5, 5).model
    with pytest.warns(DeprecationWarning, match=r"variable\[\.\.\.\]"):
        old = model.kernel.value
    np.testing.assert_array_equal(old, model.kernel[...])
    np.testing.assert_array_equal(old, model.kernel.get_value())
    with pytest.warns(DeprecationWarning, match=r"variable\.set_value\(value\)"):
        model.kernel.value = jnp.ones((5, 5))


def test_pitfall_copying_the_variable_ties_the_two_models():
    """`model.kernel = donor.kernel` ties the two models

    Both models then hold one Variable: writing to the donor's kernel changes the
    model's. Copy the array: `nnx.Param(donor.kernel[...])`.
    """
    pair = dense(5, 5)
    donor, model = pair.model, pair.model
    model.kernel = donor.kernel
    donor.kernel[...] = jnp.zeros((5, 5))
    np.testing.assert_array_equal(model.kernel[...], jnp.zeros((5, 5)))


@pytest.mark.parametrize("in_place", [False, True])
def test_pitfall_nnx_jit_in_tree_mode_drops_the_assignment(nnx_mode, in_place):
    """`nnx.jit` in tree mode drops the assignment

    A jitted function that assigns `model.kernel = nnx.Param(...)` returns the right
    output, and leaves the caller's model as it was. In graph mode the caller's model is
    edited, and `model.kernel[...] = array` edits it in both modes.
    """
    pair = dense(5, 5)
    model, (x,) = pair.model, pair.arrays
    before, ones = model.kernel[...], jnp.ones((5, 5))

    @nnx.jit
    def edit_and_apply(model, x):
        if in_place:
            model.kernel[...] = ones
        else:
            nnx_side.set_kernel(model, 1.0)
        return model(x)

    output = edit_and_apply(model, x)
    np.testing.assert_allclose(output, jnp.dot(x, ones) + model.bias, rtol=1e-6)
    dropped = nnx_mode == "tree" and not in_place
    np.testing.assert_array_equal(model.kernel[...], before if dropped else ones)


def test_pitfall_nnx_jit_in_tree_mode_does_not_return_its_argument(nnx_mode):
    """`ValueError: Duplicate Param` from `nnx.jit` in tree mode

    The jitted function returns the model that it got. The Variables that the edit left
    alone are then input and output at once, which graph mode allows and tree mode does
    not.
    """
    model = dense(5, 5).model

    @nnx.jit
    def edit(model):
        nnx_side.set_kernel(model, 1.0)
        return model

    if nnx_mode == "graph":
        np.testing.assert_array_equal(edit(model).kernel[...], jnp.ones((5, 5)))
    else:
        with pytest.raises(ValueError, match="Duplicate Param"):
            edit(model)


def test_pitfall_cached_partial_refuses_the_assignment(nnx_mode):
    """`ValueError: The graph structure of a node added to cached_partial was mutated`

    `nnx.cached_partial` takes a function that leaves the model's structure alone: a new
    `nnx.Param` is a new structure. Split, map and merge, or edit in place. In tree mode
    it refuses every call: `cached_partial is a graph-mode-only API`.
    """
    pair = dense(5, 5)
    model, (x,) = pair.model, pair.arrays

    def edit_and_apply(model, x):
        nnx_side.set_kernel(model, 1.0)
        return model(x)

    def edit_in_place(model, x):
        model.kernel[...] = jnp.ones((5, 5))

    if nnx_mode == "tree":
        with pytest.raises(ValueError, match="cached_partial is a graph-mode-only API"):
            nnx.cached_partial(nnx.jit(edit_in_place), model)
        return
    with pytest.raises(ValueError, match="The graph structure of a node added to"):
        nnx.cached_partial(nnx.jit(edit_and_apply), model)(x)
    nnx.cached_partial(nnx.jit(edit_in_place), model)(x)
    np.testing.assert_array_equal(model.kernel[...], jnp.ones((5, 5)))


def test_pitfall_plain_dict_can_be_edited_in_place():
    """Linen: a plain dict can be edited in place

    Every holder of the dict sees the new kernel. A FrozenDict stops it with
    `ValueError: FrozenDict is immutable.`
    """
    pair = dense(5, 5)
    plain, (x,) = pair.variables, pair.arrays
    frozen, before = freeze(plain), pair.linen.apply(plain, x)
    plain["params"]["kernel"] = jnp.zeros((5, 5))  # every holder of `plain` sees it
    assert not np.array_equal(pair.linen.apply(pair.variables, x), before)
    with pytest.raises(ValueError, match="FrozenDict is immutable"):
        frozen["params"]["kernel"] = jnp.zeros((5, 5))


def test_plain_dict_needs_no_freeze():
    pair = dense(5, 5)
    plain, (x,) = pair.variables, pair.arrays
    kernel = jnp.full_like(plain["params"]["kernel"], 0.5)
    edited = {**plain, "params": {**plain["params"], "kernel": kernel}}
    assert type(pair.linen.init(jax.random.key(0), x)) is dict
    frozen = linen.set_kernel(freeze(plain), 0.5)
    parity.assert_equal(pair.linen.apply(frozen, x), pair.linen.apply(edited, x))


def test_pitfall_linen_ignores_an_extra_key():
    """Linen: `apply` ignores an extra key

    Spread the new kernel in under a misspelt name, `kernal`, and the output is that of
    the old kernel.
    """
    pair = dense(5, 5)
    apply, variables, (x,) = pair.linen.apply, pair.variables, pair.arrays
    params = {**variables["params"], "kernal": jnp.zeros((5, 5))}
    parity.assert_equal(apply(variables, x), apply({"params": params}, x))
