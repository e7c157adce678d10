"""Parity, cost and pitfalls of `surgery/zero_last_layer`."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linen2nnx import Pair, parity
from linen2nnx.cost.forward import Edited, plain_apply, plain_layers
from linen2nnx.suite.entry import Entry, variables_of_seed
from linen2nnx.suite.problem import Compare, Edit, Mistake, Problem
from linen_impl.surgery import zero_last_layer as linen
from nnx_impl.surgery import zero_last_layer as nnx_side

EXPECTED = [
    {
        "flax": "<0.12.0",
        "modes": ["graph"],
        "verdict": "not there yet",
        "cause": "the layers are in an nnx.List, since 0.12.0",
    },
    {
        "flax": ">=0.12.0,<0.12.6",
        "modes": ["graph"],
        "verdict": "pitfall changed",
        "cause": "the error for a plain list of layers has other words",
    },
]


def mlp(din, num_layers, features):
    create = partial(nnx_side.MLP, din, num_layers, features)
    return Pair(linen.MLP(num_layers, features), create, [(din,)])


def swept(din, num_layers, features):
    """The sweep is the output, so that gradients go through it and state is unmoved."""
    pair = mlp(din, num_layers, features)
    return replace(
        pair, linen_call=linen.ablation_sweep, nnx_call=nnx_side.ablation_sweep
    )


def zero_last_kernel(din, num_layers, features):
    changed = f"params/layers_{num_layers - 1}/kernel"
    return Edit(linen.zero_last_kernel, nnx_side.zero_last_kernel, changes=[changed])


def zero_last_pair(layers):
    kernel, bias = layers[-1]
    return [*layers[:-1], (jnp.zeros_like(kernel), bias)]


def assign_last_kernel(model):
    nnx_side.zero_last_kernel(model)
    return model


def map_last_kernel(model):
    last = ["layers", len(model.layers) - 1, "kernel"]

    def zero(path, leaf):
        names = [getattr(key, "key", None) for key in path[:3]]
        return jnp.zeros_like(leaf) if names == last else leaf

    graphdef, state = nnx.split(model)
    state = jax.tree_util.tree_map_with_path(zero, state)
    return nnx.merge(graphdef, state)


problem = Problem(
    linen,
    nnx_side,
    pair=mlp,
    sizes=[(1, 12, 33), (5, 2, 5)],
    compared={
        "zero_last_kernel": Compare(edit=zero_last_kernel),
        "sweep_of_one_layer": Compare(
            pair=swept, sizes=[(1, 1, 33)], checks=["outputs", "state"]
        ),
        "ablation_sweep": Compare(pair=swept, sizes=[(1, 3, 33), (5, 2, 5)]),
        # op by op, the gradients take seconds
        "sweep_past_ten_layers": Compare(
            pair=swept, sizes=[(1, 11, 33)], checks=["outputs", "state"]
        ),
    },
    entry=Entry(
        name="zero_last_layer_kernel",
        arguments={"num_layers": 4, "features": 2},
        sizes=((1, 1, 33), (33, 2, 1), (5, 1, 5), (5, 2, 5), (5, 12, 5)),
        start=variables_of_seed(mlp),
        limit=lambda variables, x: plain_apply(
            zero_last_pair(plain_layers(variables)), x
        ),
    ),
    cost=Edited(
        linen=linen.zero_last_kernel,
        nnx={
            "attribute assignment": assign_last_kernel,
            "split/map/merge": map_last_kernel,
        },
        plain=zero_last_pair,
        edited=lambda layers: (
            f"layers_{layers - 1}/kernel",
            f"layers/{layers - 1}/kernel",
        ),
        size=lambda layers: (32, layers, 32),
        layers=[1, 4, 16, 64],
    ),
    mistakes=[
        Mistake("nnx", "model.layers[-1]", "model.layers[0]", "zero_last_kernel"),
        Mistake(
            "nnx",
            "last.kernel = nnx.Param(jnp.zeros_like(last.kernel[...]))",
            "last.bias = nnx.Param(jnp.zeros_like(last.bias[...]))",
            "zero_last_kernel",
        ),
        Mistake("nnx", "zeros_like(last", "ones_like(last", "zero_last_kernel"),
        Mistake(
            "nnx",
            "layer.kernel, layer.bias = kernel, bias",
            "layer.kernel = kernel",
            "sweep_of_one_layer",
        ),
        Mistake(
            "nnx",
            "layer.bias = nnx.Param(jnp.zeros_like(bias[...]))",
            "pass",
            "sweep_of_one_layer",
        ),
        Mistake("nnx", "model(x) - intact", "model(x) + intact", "ablation_sweep"),
        Mistake("linen", "len(params) - 1", "len(params) - 2", "zero_last_kernel"),
        Mistake(
            "linen",
            'name = f"layers_{len(params) - 1}"',
            "name = max(params)",
            "zero_last_kernel",
        ),
        Mistake("linen", "y - intact", "y", "sweep_of_one_layer"),
    ],
)
TestZeroLastLayer = problem.tests()


def test_ablation_sweep_is_the_distance_without_each_layer():
    pair = mlp(5, 3, 5)
    model, (x,) = pair.model, pair.arrays
    layers = [(layer.kernel[...], layer.bias[...]) for layer in model.layers]
    expected = []
    for ablated in range(3):
        y, intact = x, x
        for i, (kernel, bias) in enumerate(layers):
            intact = jnp.dot(intact, kernel) + bias
            y = jnp.zeros(5) if i == ablated else jnp.dot(y, kernel) + bias
        expected.append(np.sqrt(np.sum((np.asarray(y) - np.asarray(intact)) ** 2)))
    np.testing.assert_allclose(
        nnx_side.ablation_sweep(model, x), expected, rtol=1e-6
    )  # numpy sums the squares in another order


def test_linen_entry_from_its_own_seed():
    """Without variables the last kernel is zeroed all the same: its bias is left."""
    output = linen.zero_last_layer_kernel(7, np.arange(5.0), 4, 5)
    np.testing.assert_array_equal(output, np.zeros(5))


def test_pitfall_plain_list_of_layers_is_an_error():
    """`ValueError: Found data on value of type '<class 'list'>' assigned to static
    attribute 'layers'`

    The layers are in a plain Python list. Put them in an `nnx.List`.
    """

    class PlainList(nnx.Module):
        def __init__(self, rngs):
            self.layers = [nnx.Linear(2, 2, rngs=rngs) for _ in range(3)]

    with pytest.raises(ValueError, match="Found data on value of type"):
        PlainList(nnx.Rngs(0))


def test_pitfall_one_past_the_last_layer():
    """`IndexError: Index out of bounds`

    `model.layers[2]` of a model of two layers is one past the last. Linen has no such
    check, as the next entry shows.
    """
    model = mlp(5, 2, 5).model
    with pytest.raises(IndexError):
        model.layers[2]


def test_pitfall_linen_adds_a_layer_that_no_one_applies():
    """Linen: the spread adds a layer that no one applies

    An edit under `layers_2` of a model of two layers adds a third key. `apply` ignores
    it and the output is unchanged.
    """
    pair = mlp(5, 2, 5)
    apply, params, (x,) = pair.linen.apply, pair.variables["params"], pair.arrays
    extra = jax.tree.map(jnp.zeros_like, params["layers_1"])
    edited = {**params, "layers_2": extra}
    parity.assert_equal(apply({"params": params}, x), apply({"params": edited}, x))


def test_pitfall_the_last_name_is_not_the_last_layer():
    """Linen: `max(params)` is not the last layer

    With twelve layers the largest name is `layers_9`, because names compare as text.
    The last layer is `layers_11`; nnx has it at `model.layers[-1]`.
    """
    pair = mlp(5, 12, 5)
    params = pair.variables["params"]
    assert max(params) == "layers_9"
    last = pair.model.layers[-1].kernel[...]
    np.testing.assert_array_equal(last, params["layers_11"]["kernel"])


def test_pitfall_leaves_are_in_another_order_past_ten_layers():
    """Past ten layers the leaves come in another order

    Linen sorts `layers_10` and `layers_11` before `layers_2`; an `nnx.List` counts.
    Leaves paired by position, as in `zip(jax.tree.leaves(a), jax.tree.leaves(b))`, are
    mismatched from the third layer on. Pair them by path.
    """
    pair = mlp(5, 12, 5)
    ours = jax.tree.leaves(pair.variables)
    theirs = jax.tree.leaves(nnx.state(pair.model))
    differing = [
        i for i in range(24) if not np.array_equal(ours[i], theirs[i])
    ]  # two leaves a layer: layers_10 and layers_11 come after layers_1
    assert differing == list(range(4, 24))
