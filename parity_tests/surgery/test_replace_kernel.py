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
    _, _, model, _ = pair(5, 5)
    with jax.numpy_dtype_promotion("standard"):
        model.kernel[...] = jnp.asarray([1, 2, 3, 4, 5], jnp.bfloat16)
    assert (model.kernel.shape, model.kernel.dtype) == ((5, 5), jnp.float32)
    np.testing.assert_array_equal(model.kernel[...], [[1, 2, 3, 4, 5]] * 5)


def test_pitfall_set_value_takes_the_new_shape_and_dtype():
    _, _, model, _ = pair(5, 5)
    model.kernel.set_value(jnp.ones(2, jnp.bfloat16))
    assert (model.kernel.shape, model.kernel.dtype) == ((2,), jnp.bfloat16)


def test_pitfall_flipped_kernel_fails_only_at_the_call():
    _, _, model, x = pair(1, 33)
    model.kernel = nnx.Param(jnp.ones((33, 1)))  # no error yet
    with pytest.raises(TypeError, match="contracting dimensions"):
        model(x)


def test_pitfall_flipped_square_kernel_is_silent():
    module, variables, model, x = pair(5, 5)
    model.kernel = nnx.Param(model.kernel[...].T)
    with pytest.raises(parity.ParityError, match="params/kernel"):
        parity.assert_parity(module, variables, model, x)


def test_pitfall_float64_array_stays_float64_in_a_param():
    _, _, model, x = pair(5, 5)
    float64 = np.ones((5, 5))
    model.kernel = nnx.Param(float64)
    assert model.kernel.dtype == np.float64  # a numpy array in the state
    with jax.numpy_dtype_promotion("standard"):
        assert model(x).dtype == jnp.float32  # while 32-bit JAX computes in float32
    model.kernel = nnx.Param(jnp.asarray(float64))
    assert model.kernel.dtype == jnp.float32


def test_pitfall_value_is_deprecated():
    """Read with `variable[...]` or `get_value`, write with `[...] =` or `set_value`."""
    _, _, model, _ = pair(5, 5)
    with pytest.warns(DeprecationWarning, match=r"variable\[\.\.\.\]"):
        old = model.kernel.value
    np.testing.assert_array_equal(old, model.kernel[...])
    np.testing.assert_array_equal(old, model.kernel.get_value())
    with pytest.warns(DeprecationWarning, match=r"variable\.set_value\(value\)"):
        model.kernel.value = jnp.ones((5, 5))


def test_pitfall_copying_the_variable_ties_the_two_models():
    _, _, donor, _ = pair(5, 5, seed=1)
    _, _, model, _ = pair(5, 5, seed=2)
    model.kernel = donor.kernel
    donor.kernel[...] = jnp.zeros((5, 5))
    np.testing.assert_array_equal(model.kernel[...], jnp.zeros((5, 5)))


@pytest.mark.parametrize("in_place", [False, True])
def test_pitfall_nnx_jit_in_tree_mode_drops_the_assignment(nnx_mode, in_place):
    """What the jitted function returns is right; the caller's model is the old one."""
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
    """The Variables that the edit leaves alone are input and output at once."""
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
    module, variables, _, x = pair(5, 5)
    params = {**variables["params"], "kernal": jnp.zeros((5, 5))}
    parity.assert_equal(module.apply(variables, x), module.apply({"params": params}, x))
