import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze

from linen2nnx import mapping, parity
from linen_impl.surgery import replace_kernel as linen
from nnx_impl.surgery import replace_kernel as nnx_side
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


@pytest.mark.parametrize(("din", "features", "seed", "dtype", "jit"), CASES)
def test_set_kernel(din, features, seed, dtype, jit):
    module, variables, model, x = pair(din, features, seed, dtype)
    edit = parity.Edit(
        linen=lambda variables: linen.set_kernel(variables, -1.25),
        nnx=lambda model: nnx_side.set_kernel(model, -1.25),
        changes=["params/kernel"],
    )
    parity.assert_parity(module, variables, model, x, edit=edit, jit=jit)


@pytest.mark.parametrize(("din", "features", "seed", "dtype", "jit"), CASES)
def test_copy_kernel(din, features, seed, dtype, jit):
    """Donor and model are edited as one, so that the donor is compared as well."""
    module, variables, model, x = pair(din, features, seed, dtype)
    _, donor_variables, donor, _ = pair(din, features, seed + 1, dtype)

    def linen_edit(both):
        donor, model = ({"params": both["params"][name]} for name in ("donor", "model"))
        copied = linen.copy_kernel(freeze(donor), freeze(model))
        return {"params": {"donor": donor["params"], "model": copied["params"]}}

    parity.assert_parity(
        lambda both, x: module.apply({"params": both["params"]["model"]}, x),
        {"params": {"donor": donor_variables["params"], "model": variables["params"]}},
        nnx.Dict(donor=donor, model=model),
        x,
        call=lambda both, x: both.model(x),
        edit=parity.Edit(
            linen=linen_edit,
            nnx=lambda both: nnx_side.copy_kernel(both.donor, both.model),
            changes=["params/model/kernel"],
        ),
        jit=jit,
    )


def test_replace_kernel(nnx_mode):
    for rng, seed, x, features in entry_inputs(nnx_mode):
        value = rng.standard_normal()
        model = create_model(len(x), int(features), int(seed))
        module = linen.create_model(int(features))
        variables = mapping.to_linen(model, variable_shapes(module, len(x)))

        output = nnx_side.replace_kernel(seed, x, features, value)

        parity.assert_equal(
            linen.replace_kernel(seed, x, features, value, variables=variables), output
        )
        kernel = jnp.full_like(model.kernel[...], value)
        plain = jnp.dot(jnp.asarray(x, jnp.float32), kernel) + model.bias[...]
        parity.assert_equal(plain, output)


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
    _, _, model, x = pair(5, 5)
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
    _, _, model, _ = pair(5, 5)
    with jax.numpy_dtype_promotion("standard"):
        model.kernel[...] = jnp.asarray([1, 2, 3, 4, 5], jnp.bfloat16)
    assert (model.kernel.shape, model.kernel.dtype) == ((5, 5), jnp.float32)
    np.testing.assert_array_equal(model.kernel[...], [[1, 2, 3, 4, 5]] * 5)


def test_pitfall_set_value_takes_the_new_shape_and_dtype():
    """`model.kernel.set_value(array)` takes any shape and dtype

    It replaces what the Param holds: a float32 kernel of shape (3, 2) becomes a
    bfloat16 array of shape (2,), and nothing is checked.
    """
    _, _, model, _ = pair(5, 5)
    model.kernel.set_value(jnp.ones(2, jnp.bfloat16))
    assert (model.kernel.shape, model.kernel.dtype) == ((2,), jnp.bfloat16)


def test_pitfall_flipped_kernel_fails_only_at_the_call():
    """`TypeError: dot_general requires contracting dimensions to have the same shape`

    A kernel of flipped shape. The assignment is accepted; the error comes at the next
    call of the model. A kernel has shape (din, features) on both sides.
    """
    _, _, model, x = pair(1, 33)
    model.kernel = nnx.Param(jnp.ones((33, 1)))  # no error yet
    with pytest.raises(TypeError, match="contracting dimensions"):
        model(x)


def test_pitfall_flipped_square_kernel_is_silent():
    """A flipped square kernel gives no error

    The shapes fit and the output is wrong. `parity.assert_parity` finds it: its
    `ParityError` names `params/kernel`.
    """
    module, variables, model, x = pair(5, 5)
    model.kernel = nnx.Param(model.kernel[...].T)
    with pytest.raises(parity.ParityError, match="params/kernel"):
        parity.assert_parity(module, variables, model, x)


def test_pitfall_float64_array_stays_float64_in_a_param():
    """A numpy float64 array stays float64 in the Param

    `nnx.Param(np.ones((3, 2)))` keeps the numpy array, of dtype float64, in the state,
    while 32-bit JAX computes in float32. Write `nnx.Param(jnp.asarray(array))`.
    """
    _, _, model, x = pair(5, 5)
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
    _, _, model, _ = pair(5, 5)
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
    _, _, donor, _ = pair(5, 5, seed=1)
    _, _, model, _ = pair(5, 5, seed=2)
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
    _, _, model, x = pair(5, 5)
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
    _, _, model, _ = pair(5, 5)

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
    _, _, model, x = pair(5, 5)

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
    module, frozen, _, x = pair(5, 5)
    plain = jax.tree.map(lambda leaf: leaf, frozen.unfreeze())
    before = module.apply(plain, x)
    plain["params"]["kernel"] = jnp.zeros((5, 5))  # every holder of `plain` sees it
    assert not np.array_equal(module.apply(plain, x), before)
    with pytest.raises(ValueError, match="FrozenDict is immutable"):
        frozen["params"]["kernel"] = jnp.zeros((5, 5))


def test_plain_dict_needs_no_freeze():
    module, frozen, _, x = pair(5, 5)
    plain = frozen.unfreeze()
    kernel = jnp.full_like(plain["params"]["kernel"], 0.5)
    edited = {**plain, "params": {**plain["params"], "kernel": kernel}}
    assert type(module.init(jax.random.key(0), x)) is dict
    parity.assert_equal(
        module.apply(linen.set_kernel(frozen, 0.5), x), module.apply(edited, x)
    )


def test_pitfall_linen_ignores_an_extra_key():
    """Linen: `apply` ignores an extra key

    Spread the new kernel in under a misspelt name, `kernal`, and the output is that of
    the old kernel.
    """
    module, variables, _, x = pair(5, 5)
    params = {**variables["params"], "kernal": jnp.zeros((5, 5))}
    parity.assert_equal(module.apply(variables, x), module.apply({"params": params}, x))
