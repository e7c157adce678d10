import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

from linen2nnx import mapping, parity
from linen_impl.state import pure_update as linen
from nnx_impl.state import pure_update as nnx_side
from parity_tests.entry_inputs import entry_inputs
from parity_tests.random_pair import random_pair, variable_shapes

CASES = [  # din, features, seed, dtype, jit
    (1, 33, 0, jnp.float32, False),
    (5, 5, 1, jnp.bfloat16, True),
]
EVERY_LEAF = {  # the edits of all leaves, by name of the idiom
    "scale_state": (-1.5,),
    "cast_to_bfloat16": (),
    "add_noise": (5, 0.1),
}
PARAMS_ONLY = {"scale_params": (-1.5,), "scale_by_sgd": (1.75,)}


def create_model(din, features, seed=0):
    return nnx_side.create_model(din=din, features=features, rngs=nnx.Rngs(seed))


def pair(din, features, seed=0, dtype=jnp.float32):
    module = linen.create_model(features)
    return module, *random_pair(
        module, lambda: create_model(din, features), din, seed, dtype
    )


def norm_pair(seed, dtype):
    """A layer with two collections: scale and bias are params, mean and var are not."""
    module = nn.BatchNorm(use_running_average=True)

    def create():
        return nnx.BatchNorm(5, use_running_average=True, rngs=nnx.Rngs(0))

    return module, *random_pair(module, create, 5, seed, dtype)


def edit(name, arguments, changes):
    return parity.Edit(
        linen=lambda variables: getattr(linen, name)(variables, *arguments),
        nnx=lambda model: getattr(nnx_side, name)(model, *arguments),
        changes=changes,
    )


@pytest.mark.parametrize("name", EVERY_LEAF)
@pytest.mark.parametrize(("din", "features", "seed", "dtype", "jit"), CASES)
def test_every_leaf(name, din, features, seed, dtype, jit):
    if name == "cast_to_bfloat16":  # from float32, and called with bfloat16
        dtype = jnp.float32
    module, variables, model, x = pair(din, features, seed, dtype)
    if name == "cast_to_bfloat16":
        x = x.astype(jnp.bfloat16)
    change = edit(name, EVERY_LEAF[name], ["params"])
    parity.assert_parity(module, variables, model, x, edit=change, jit=jit)


@pytest.mark.parametrize("name", PARAMS_ONLY)
def test_params_only(name):
    """Op by op: the next test is jitted, and in bfloat16."""
    module, variables, model, x = pair(1, 33)
    change = edit(name, PARAMS_ONLY[name], ["params"])
    parity.assert_parity(module, variables, model, x, edit=change)


@pytest.mark.parametrize("name", PARAMS_ONLY)
@pytest.mark.parametrize(
    ("seed", "dtype", "jit"), [(0, jnp.float32, False), (1, jnp.bfloat16, True)]
)
def test_params_only_leaves_the_statistics(name, seed, dtype, jit):
    module, variables, model, x = norm_pair(seed, dtype)
    change = edit(name, PARAMS_ONLY[name], ["params"])
    parity.assert_parity(module, variables, model, x, edit=change, jit=jit)


def test_the_noise_is_seeded_and_of_the_given_size():
    _, variables, _, _ = pair(33, 33)
    moved = [
        jax.tree.map(jnp.subtract, linen.add_noise(variables, seed, 0.1), variables)
        for seed in (1, 1, 2)
    ]
    kernels = [np.asarray(tree["params"]["kernel"]) for tree in moved]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    np.testing.assert_allclose(kernels[0].std(), 0.1, rtol=0.1)  # of 1,089 draws
    assert not np.array_equal(kernels[0][0], moved[0]["params"]["bias"])


def test_pure_state_update(nnx_mode):
    for rng, seed, x, features in entry_inputs(nnx_mode):
        scale = rng.choice([float, np.float32, np.float64])(rng.standard_normal())
        model = create_model(len(x), int(features), int(seed))
        module = linen.create_model(int(features))
        variables = mapping.to_linen(model, variable_shapes(module, len(x)))

        output = nnx_side.pure_state_update(seed, x, features, scale)

        parity.assert_equal(
            linen.pure_state_update(seed, x, features, scale, variables=variables),
            output,
        )
        kernel, bias = (leaf[...] * float(scale) for leaf in (model.kernel, model.bias))
        parity.assert_equal(jnp.dot(jnp.asarray(x, jnp.float32), kernel) + bias, output)


def test_linen_entry_from_its_own_seed():
    x = jnp.arange(5.0)
    variables = linen.create_model(5).init(jax.random.key(7), x)
    scaled = jax.tree.map(lambda leaf: leaf * 0.5, variables)
    expected = linen.create_model(5).apply(scaled, x)
    parity.assert_equal(expected, linen.pure_state_update(7, x, 5, 0.5))


def test_pitfall_merging_the_unmapped_state_shares_the_variables():
    """Merging the unmapped state shares the Variables

    `nnx.merge(graphdef, state)` of a state that was not mapped gives a model that
    shares its Variables with the original: writing to one changes the other.
    `nnx.merge(graphdef, state, copy=True)` does not share.
    """
    _, _, model, _ = pair(5, 5)
    graphdef, state = nnx.split(model)
    shared = nnx.merge(graphdef, state)
    shared.kernel[...] = jnp.zeros((5, 5))
    np.testing.assert_array_equal(model.kernel[...], jnp.zeros((5, 5)))
    copied = nnx.merge(graphdef, state, copy=True)
    copied.kernel[...] = jnp.ones((5, 5))
    np.testing.assert_array_equal(model.kernel[...], jnp.zeros((5, 5)))


def test_pitfall_rng_keys_are_in_the_state():
    """`TypeError: multiply does not accept dtypes key<fry>, float32.`

    RNG keys are part of the state of a model that holds dropout, and a key cannot be
    multiplied. Map the Params only, as in "The parameters only, in place" above.
    """
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    with (
        jax.numpy_dtype_promotion("standard"),  # strict stops at the counter before it
        pytest.raises(TypeError, match="does not accept dtypes key<fry>"),
    ):
        nnx_side.scale_state(dropout, 0.5)
    nnx_side.scale_params(dropout, 0.5)


def test_pitfall_the_same_noise_goes_to_other_leaves_past_ten_layers():
    """The same noise goes to other leaves past ten layers

    Keys are dealt to the leaves in their order. Linen sorts `layers_10` before
    `layers_2` and nnx counts, so with twelve layers only the first two get the same
    noise.
    """
    ours = {f"layers_{i}": jnp.zeros(()) for i in range(12)}
    theirs = nnx.List([nnx.Param(jnp.zeros(())) for _ in range(12)])
    ours, theirs = (
        linen.add_noise(freeze(ours), 0, 1.0),
        nnx_side.add_noise(theirs, 0, 1.0),
    )
    same = [bool(ours[f"layers_{i}"] == theirs[i][...]) for i in range(12)]
    assert same == [True, True] + [False] * 10


def test_pitfall_update_checks_neither_shape_nor_name():
    """`nnx.update` checks neither shape nor name

    It stores a (7, 7) array in a kernel of shape (3, 2). Given a Param under the
    misspelt name `kernal`, it adds it to the model as a new attribute.
    """
    _, _, model, _ = pair(5, 5)
    nnx.update(model, {"kernel": jnp.zeros((7, 7)), "kernal": nnx.Param(jnp.zeros(2))})
    assert model.kernel.shape == (7, 7)
    assert model.kernal.shape == (2,)


def test_pitfall_a_numpy_scalar_widens_bfloat16():
    """A numpy scalar widens bfloat16

    A bfloat16 leaf times the Python number `0.5` stays bfloat16. Times
    `np.float32(0.5)` it becomes float32.
    """
    leaf = jnp.ones(2, jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        assert (leaf * 0.5).dtype == jnp.bfloat16
        assert (leaf * np.float32(0.5)).dtype == jnp.float32


def test_pitfall_an_sgd_step_rounds_twice():
    """An SGD step is not bit-identical to the product

    `p - (1 - scale) * p` rounds twice and `scale * p` once: they agree to a relative
    3e-7 in float32. Use the same one on both sides when you compare.
    """
    _, variables, _, _ = pair(33, 33)
    scaled = linen.scale_params(variables, 0.9)["params"]["kernel"]
    stepped = linen.scale_by_sgd(variables, 0.9)["params"]["kernel"]
    assert not np.array_equal(scaled, stepped)
    np.testing.assert_allclose(scaled, stepped, rtol=3e-7)  # two to three ulps
