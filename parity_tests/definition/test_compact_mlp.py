import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linen2nnx import mapping, parity
from linen_impl.definition import compact_mlp as linen
from nnx_impl.definition import compact_mlp as nnx_side
from parity_tests.entry_inputs import entry_inputs, in_any_form
from parity_tests.random_pair import random_input, variable_shapes

CASES = [  # din, hidden, features, seed, dtype, jit
    (1, 5, 33, 0, jnp.float32, False),
    (5, 5, 5, 1, jnp.bfloat16, True),  # square: shapes do not tell the layers apart
]
LOOP_CASES = [  # din, num_layers, features, seed, dtype, jit
    (1, 12, 33, 0, jnp.float32, False),
    (5, 2, 5, 1, jnp.bfloat16, True),
]
MLP_NAMES = {"Dense_0": "hidden", "Dense_1": "output"}
NESTED_NAMES = {"Dense_0": "output", "Dense_1": "hidden"}


class NamedLoop(nn.Module):
    """`LoopMLP` with the names that `loop_names` gives."""

    num_layers: int
    features: int

    @nn.compact
    def __call__(self, x):
        for i in range(self.num_layers):
            x = nn.relu(nn.Dense(self.features, name=f"layers_{i}")(x))
        return x


def create(name, din, width, features, seed=0):
    """`width` is the hidden width, or of `LoopMLP` the number of layers."""
    return getattr(nnx_side, name)(din, width, features, rngs=nnx.Rngs(seed))


def random_pair(module, create_model, din, seed, dtype, rename=None):
    variables, model = parity.random_pair(
        jax.eval_shape(module.init, jax.random.key(0), jnp.ones(din)),
        nnx.eval_shape(create_model),
        seed=seed,
        dtype=dtype,
        rename=rename,
    )
    return variables, model, random_input(din, seed, dtype)


def assert_same(module, create_model, names, din, seed, dtype, jit):
    variables, model, x = random_pair(module, create_model, din, seed, dtype, names)
    parity.assert_parity(module, variables, model, x, rename=names, jit=jit)


def assert_loads(trained, named, create_model, names, theirs, din, seed, dtype, jit):
    """Params of `trained` move into a module with names, and into the nnx model."""
    held, model, x = random_pair(named, create_model, din, seed + 100, dtype)
    shapes = jax.eval_shape(trained.init, jax.random.key(0), jnp.ones(din))
    rng = np.random.default_rng(seed)
    old = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), dtype), shapes
    )
    edit = parity.Edit(
        linen=lambda _: {"params": linen.load_params(old["params"], names)},
        nnx=lambda model: nnx_side.load_params(model, old["params"], theirs),
        changes=["params"],
    )
    checks = "edit", "outputs", "state"  # nothing that was before it has a gradient
    parity.assert_parity(named, held, model, x, edit=edit, jit=jit, checks=checks)
    nnx_side.load_params(model, old["params"], theirs)
    parity.assert_equal(trained.apply(old, x), model(x))


@pytest.mark.parametrize(("din", "hidden", "features", "seed", "dtype", "jit"), CASES)
def test_model(din, hidden, features, seed, dtype, jit):
    assert_same(
        linen.MLP(hidden, features),
        lambda: create("MLP", din, hidden, features),
        MLP_NAMES,
        *(din, seed, dtype, jit),
    )


@pytest.mark.parametrize(("din", "hidden", "features", "seed", "dtype", "jit"), CASES)
def test_nested(din, hidden, features, seed, dtype, jit):
    assert_same(
        linen.NestedMLP(hidden, features),
        lambda: create("NestedMLP", din, hidden, features),
        NESTED_NAMES,
        *(din, seed, dtype, jit),
    )


@pytest.mark.parametrize(
    ("din", "num_layers", "features", "seed", "dtype", "jit"), LOOP_CASES
)
def test_loop(din, num_layers, features, seed, dtype, jit):
    assert_same(
        linen.LoopMLP(num_layers, features),
        lambda: create("LoopMLP", din, num_layers, features),
        {f"Dense_{i}": f"layers/{i}" for i in range(num_layers)},
        *(din, seed, dtype, jit),
    )


@pytest.mark.parametrize(("din", "hidden", "features", "seed", "dtype", "jit"), CASES)
def test_load_params(din, hidden, features, seed, dtype, jit):
    for name, names in (("MLP", "NAMES"), ("NestedMLP", "NESTED_NAMES")):
        assert_loads(
            getattr(linen, name)(hidden, features),
            linen.NamedMLP(hidden, features),
            lambda name=name: create(name, din, hidden, features),
            getattr(linen, names),
            getattr(nnx_side, names),
            *(din, seed, dtype, jit),
        )


@pytest.mark.parametrize(
    ("din", "num_layers", "features", "seed", "dtype", "jit"), LOOP_CASES
)
def test_load_params_of_a_loop(din, num_layers, features, seed, dtype, jit):
    assert_loads(
        linen.LoopMLP(num_layers, features),
        NamedLoop(num_layers, features),
        lambda: create("LoopMLP", din, num_layers, features),
        linen.loop_names(num_layers),
        nnx_side.loop_names(num_layers),
        *(din, seed, dtype, jit),
    )


@pytest.mark.parametrize("wrong", ["a layer missing", "a shape", "a leaf missing"])
def test_load_params_takes_all_or_nothing(wrong):
    model = create("MLP", 1, 5, 33)
    before = nnx.to_pure_dict(nnx.state(model))
    params = linen.MLP(5, 33).init(jax.random.key(1), jnp.ones(1))["params"]
    if wrong == "a layer missing":
        del params["Dense_1"]
    elif wrong == "a shape":
        params["Dense_0"]["kernel"] = jnp.ones((5, 5))
    else:
        del params["Dense_0"]["bias"]
    with pytest.raises(ValueError, match="a path or a shape differs"):
        nnx_side.load_params(model, params, nnx_side.NAMES)
    with pytest.raises(KeyError, match="Dense_2"):
        nnx_side.load_params(model, {"Dense_2": params["Dense_0"]}, nnx_side.NAMES)
    parity.assert_equal(before, nnx.to_pure_dict(nnx.state(model)))


def test_compact_mlp(nnx_mode):
    for rng, seed, x, features in entry_inputs(nnx_mode):
        hidden = 1 if len(x) == 5 else 5
        arguments = seed, x, in_any_form(rng, hidden), features
        model = create("MLP", len(x), hidden, int(features), int(seed))
        shapes = variable_shapes(linen.MLP(hidden, int(features)), len(x))
        variables = mapping.to_linen(model, shapes, rename=MLP_NAMES)

        output = nnx_side.compact_mlp(*arguments)

        parity.assert_equal(linen.compact_mlp(*arguments, variables=variables), output)
        plain = jnp.asarray(x, jnp.float32)
        plain = jnp.dot(plain, model.hidden.kernel[...]) + model.hidden.bias[...]
        plain = jnp.dot(jnp.maximum(plain, 0), model.output.kernel[...])
        parity.assert_equal(plain + model.output.bias[...], output)


def test_linen_entry_from_its_own_seed():
    x = jnp.ones(1)
    variables = linen.MLP(5, 33).init(jax.random.key(7), x)
    expected = linen.MLP(5, 33).apply(variables, x)
    parity.assert_equal(expected, linen.compact_mlp(7, x, 5, 33))


def test_pitfall_the_outer_layer_of_a_nested_call_is_the_first():
    """The outer layer of a nested call is `Dense_0`

    Loaded in the order of application, its params go to the wrong layers. `load_params`
    finds it by the shapes; where all widths are equal there is nothing to find, and the
    outputs are wrong.
    """
    x = random_input(5, 0, jnp.float32)
    module = linen.NestedMLP(5, 5)
    variables, model, _ = random_pair(
        module, lambda: create("NestedMLP", 5, 5, 5), 5, 0, jnp.float32, NESTED_NAMES
    )
    shapes = variable_shapes(linen.NestedMLP(8, 2), 5)["params"]
    assert shapes["Dense_0"]["kernel"].shape == (8, 2)  # the output layer
    assert shapes["Dense_1"]["kernel"].shape == (5, 8)
    nnx_side.load_params(model, variables["params"], nnx_side.NAMES)  # no error
    assert not np.allclose(model(x), module.apply(variables, x))


class WithLayerInFront(nn.Module):
    """`MLP` with one more layer before the others."""

    hidden: int
    features: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(x.shape[-1])(x))
        x = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(self.features)(x)


def test_pitfall_linen_a_layer_added_in_front_takes_the_params_of_the_next():
    """Linen: a layer added in front takes the params of the next

    It becomes `Dense_0`, and every later layer counts one up. Old params spread over
    new ones go to the new first layer without an error where the shapes allow it, and
    the last layer keeps its initial values. Attributes do not move.
    """
    x = jnp.ones(5)
    old = linen.MLP(5, 5).init(jax.random.key(0), x)["params"]
    new = WithLayerInFront(5, 5).init(jax.random.key(1), x)["params"]
    loaded = {**new, **old}
    WithLayerInFront(5, 5).apply({"params": loaded}, x)  # no error
    parity.assert_equal(old["Dense_0"], loaded["Dense_0"])  # was hidden, is in front
    parity.assert_equal(old["Dense_1"], loaded["Dense_1"])  # was output, is hidden
    parity.assert_equal(new["Dense_2"], loaded["Dense_2"])  # output is not trained


def test_pitfall_linen_an_old_checkpoint_misses_the_last_layer():
    """Linen: `ScopeParamNotFoundError: Could not find parameter named "kernel" in scope
    "/Dense_2".`

    Old params given as they are to a model with a layer more: the names that they have
    are used by other layers, and the last name is missing.
    """
    x = jnp.ones(5)
    old = linen.MLP(5, 5).init(jax.random.key(0), x)
    with pytest.raises(
        flax.errors.ScopeParamNotFoundError, match='in scope "/Dense_2"'
    ):
        WithLayerInFront(5, 5).apply(old, x)


def test_pitfall_an_nnx_layer_takes_the_size_of_its_input():
    """`TypeError: Linear.__init__() missing 1 required positional argument:
    'out_features'`

    `nn.Dense(2)` reads the size of its input from `x`. `nnx.Linear` takes two sizes,
    and one alone is taken for that of the input.
    """
    with pytest.raises(TypeError, match="positional argument: 'out_features'"):
        nnx.Linear(2, rngs=nnx.Rngs(0))


def test_pitfall_a_layer_without_rngs():
    """`TypeError: Linear.__init__() missing 1 required keyword-only argument: 'rngs'`

    An nnx layer makes its params in the constructor, so the constructor takes the keys.
    A Linen module takes them in `init`.
    """
    with pytest.raises(TypeError, match="keyword-only argument: 'rngs'"):
        nnx.Linear(3, 2)


def test_pitfall_nnx_initial_values_depend_on_the_order_of_construction():
    """Initial values follow the order of construction

    Swap two lines of an nnx constructor and the two layers swap their initial values.
    In Linen a layer's initial values follow its name, and the order does not matter.
    """

    class Ordered(nnx.Module):
        def __init__(self, first, second, rngs):
            setattr(self, first, nnx.Linear(5, 5, rngs=rngs))
            setattr(self, second, nnx.Linear(5, 5, rngs=rngs))

    class LinenOrdered(nn.Module):
        first: str
        second: str

        @nn.compact
        def __call__(self, x):
            return nn.Dense(5, name=self.first)(x) + nn.Dense(5, name=self.second)(x)

    names = "hidden", "output"
    ours = [Ordered(*order, nnx.Rngs(0)) for order in (names, names[::-1])]
    np.testing.assert_array_equal(ours[0].hidden.kernel, ours[1].output.kernel)
    assert not np.array_equal(ours[0].hidden.kernel, ours[1].hidden.kernel)
    key, x = jax.random.key(0), jnp.ones(5)
    theirs = [LinenOrdered(*order).init(key, x) for order in (names, names[::-1])]
    parity.assert_equal(theirs[0], theirs[1])


def test_pitfall_the_same_seed_gives_other_weights():
    """The same seed gives other weights

    Linen folds a hash of the path into the key and nnx a count, so no seed gives both
    the same kernels. Copy the params to compare the two.
    """
    model = create("MLP", 1, 5, 33, seed=0)
    params = linen.MLP(5, 33).init(jax.random.key(0), jnp.ones(1))["params"]
    assert not np.allclose(params["Dense_0"]["kernel"], model.hidden.kernel[...])
    assert not np.allclose(params["Dense_1"]["kernel"], model.output.kernel[...])
