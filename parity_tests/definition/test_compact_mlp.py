"""Parity, cost and pitfalls of `definition/compact_mlp`."""

from dataclasses import replace
from functools import partial

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linen2nnx import Pair, parity
from linen2nnx.cost.forward import Forward
from linen2nnx.cost.step import plain_dense
from linen2nnx.suite.problem import (
    JITTED_BFLOAT16,
    OP_BY_OP,
    Compare,
    Mistake,
    Problem,
)
from linen_impl.definition import compact_mlp as linen
from nnx_impl.definition import compact_mlp as nnx_side

EXPECTED = [
    {
        "flax": "<0.12.0",
        "modes": ["graph"],
        "verdict": "not there yet",
        "cause": "the layers of the loop are in an nnx.List, since 0.12.0",
    },
    {
        "flax": ">=0.12.4,<0.12.7",
        "modes": ["graph", "tree"],
        "verdict": "holds with warnings",
        "cause": "flax calls get_opaque_trace_state, which jax 0.10 "
        "deprecates; the first problem shows it",
    },
]

# din, hidden, features. Of the square one the shapes do not tell the layers apart.
SIZES = [(1, 5, 33), (5, 5, 5)]
LOOP_SIZES = [(1, 12, 33), (5, 2, 5)]  # din, num_layers, features


def mlp(din, hidden, features):
    return Pair(
        linen.MLP(hidden, features),
        partial(nnx_side.MLP, din, hidden, features),
        [(din,)],
        rename={"Dense_0": "hidden", "Dense_1": "output"},
    )


def nested(din, hidden, features):
    return Pair(
        linen.NestedMLP(hidden, features),
        partial(nnx_side.NestedMLP, din, hidden, features),
        [(din,)],
        rename={"Dense_0": "output", "Dense_1": "hidden"},
    )


def loop(din, num_layers, features):
    return Pair(
        linen.LoopMLP(num_layers, features),
        partial(nnx_side.LoopMLP, din, num_layers, features),
        [(din,)],
        rename={f"Dense_{i}": f"layers/{i}" for i in range(num_layers)},
    )


def plain_loop(layers, x):
    for layer in layers:
        x = jax.nn.relu(plain_dense(layer, x))
    return x


problem = Problem(
    linen,
    nnx_side,
    pair=loop,
    sizes=LOOP_SIZES,
    compared={
        "mlp": Compare(pair=mlp, sizes=SIZES),
        "nested": Compare(pair=nested, sizes=SIZES),
        "loop": Compare(),
    },
    cost=Forward(
        plain=plain_loop,
        weights=lambda variables: [
            variables["params"][f"Dense_{i}"] for i in range(len(variables["params"]))
        ],
        size=lambda layers: (32, layers, 32),
        layers=[1, 4, 16],
    ),
    mistakes=[
        Mistake("nnx", "x = nnx.relu(self.hidden(x))", "x = self.hidden(x)", "mlp"),
        Mistake(
            "nnx",
            "self.output(nnx.relu(self.hidden(x)))",
            "nnx.relu(self.output(self.hidden(x)))",
            "nested",
        ),
        Mistake("nnx", "nnx.relu(layer(x))", "layer(nnx.relu(x))", "loop"),
        Mistake("nnx", "nnx.update(model, new)", "pass", "test_load_params"),
        Mistake(
            "linen",
            "nn.relu(nn.Dense(self.hidden)(x))",
            "nn.Dense(self.hidden)(nn.relu(x))",
            "nested",
        ),
        Mistake(
            "linen",
            '{"Dense_0": "output", "Dense_1": "hidden"}',
            '{"Dense_0": "hidden", "Dense_1": "output"}',
            "test_load_params",
        ),
        Mistake(
            "linen",
            "{names[name]: layer for name, layer in params.items()}",
            "params",
            "test_load_params",
        ),
        Mistake(
            "linen",
            'f"layers_{i}"',
            'f"layers_{num_layers - 1 - i}"',
            "test_load_params_of_a_loop",
        ),
    ],
)
TestCompactMLP = problem.tests()


class NamedLoop(nn.Module):
    """`LoopMLP` with the names that `loop_names` gives."""

    num_layers: int
    features: int

    @nn.compact
    def __call__(self, x):
        for i in range(self.num_layers):
            x = nn.relu(nn.Dense(self.features, name=f"layers_{i}")(x))
        return x


def assert_loads(pair, named, names, theirs, run):
    """Params of the Linen module move into one with names, and into the nnx model."""
    trained = replace(pair, dtype=run.dtype)
    held = replace(trained, linen=named, rename=None, seed=1)
    old = trained.variables["params"]
    edit = parity.Edit(
        linen=lambda _: {"params": linen.load_params(old, names)},
        nnx=lambda model: nnx_side.load_params(model, old, theirs),
        changes=["params"],
    )
    checks = "edit", "outputs", "state"  # nothing that was before it has a gradient
    parity.assert_parity(held, edit=edit, jit=run.jit, checks=checks)
    model = held.model
    nnx_side.load_params(model, old, theirs)
    expected = trained.linen.apply(trained.variables, *trained.arrays)
    parity.assert_equal(expected, model(*trained.arrays))


@pytest.mark.parametrize(
    ("size", "run"), [(SIZES[0], OP_BY_OP), (SIZES[1], JITTED_BFLOAT16)]
)
def test_load_params(size, run):
    _, *widths = size
    for make, names in ((nested, "NESTED_NAMES"), (mlp, "NAMES")):
        named = linen.NamedMLP(*widths)
        ours, theirs = getattr(linen, names), getattr(nnx_side, names)
        assert_loads(make(*size), named, ours, theirs, run)


@pytest.mark.parametrize(
    ("size", "run"), [(LOOP_SIZES[0], OP_BY_OP), (LOOP_SIZES[1], JITTED_BFLOAT16)]
)
def test_load_params_of_a_loop(size, run):
    _, num_layers, features = size
    names = [side.loop_names(num_layers) for side in (linen, nnx_side)]
    assert_loads(loop(*size), NamedLoop(num_layers, features), *names, run)


@pytest.mark.parametrize("wrong", ["a layer missing", "a shape", "a leaf missing"])
def test_load_params_takes_all_or_nothing(wrong):
    pair = mlp(1, 5, 33)
    model = pair.model
    params = jax.tree.map(jnp.negative, pair.variables["params"])
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
    parity.assert_equal(pair.variables, pair.variables_of(model))


def test_pitfall_the_outer_layer_of_a_nested_call_is_the_first():
    """The outer layer of a nested call is `Dense_0`

    Loaded in the order of application, its params go to the wrong layers. `load_params`
    finds it by the shapes; where all widths are equal there is nothing to find, and the
    outputs are wrong.
    """
    shapes = nested(5, 8, 2).abstract_variables["params"]
    assert shapes["Dense_0"]["kernel"].shape == (8, 2)  # the output layer
    assert shapes["Dense_1"]["kernel"].shape == (5, 8)
    pair = nested(5, 5, 5)
    model, (x,) = pair.model, pair.arrays
    nnx_side.load_params(model, pair.variables["params"], nnx_side.NAMES)  # no error
    assert not np.allclose(model(x), pair.linen.apply(pair.variables, x))


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
    model = mlp(1, 5, 33).model_from(0)
    params = linen.MLP(5, 33).init(jax.random.key(0), jnp.ones(1))["params"]
    assert not np.allclose(params["Dense_0"]["kernel"], model.hidden.kernel[...])
    assert not np.allclose(params["Dense_1"]["kernel"], model.output.kernel[...])
