"""Parity, cost and pitfalls of `definition/setup_submodules`."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict

from linen2nnx import Pair, parity
from linen2nnx.cost.forward import Forward
from linen2nnx.cost.step import plain_dense
from linen2nnx.suite.problem import Compare, Edit, Mistake, Problem
from linen_impl.definition import setup_submodules as linen
from nnx_impl.definition import setup_submodules as nnx_side

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
        "cause": "the error for a plain container of layers has other words",
    },
]

OUTPUTS = "outputs", "state"


def gated(din, num_layers, features, linen_call=None, nnx_call=None):
    return Pair(
        linen.GatedMLP(num_layers, features),
        partial(nnx_side.GatedMLP, din, num_layers, features),
        [(din,)],
        linen_call=linen_call,
        nnx_call=nnx_call,
    )


def head(name):
    """The pair of which that head alone is called."""
    return partial(
        gated,
        linen_call=lambda module, variables, x: linen.apply_head(
            module, variables, x, name
        ),
        nnx_call=lambda model, x: nnx_side.apply_head(model, x, name),
    )


def scales(num_layers, features):
    """Of inputs that are positive: relu makes zeros of the others."""
    return Pair(
        linen.Scales(num_layers, features),
        lambda rngs: nnx_side.Scales(num_layers, features),
        [(features,)],
        linen_call=lambda module, variables, x: module.apply(variables, abs(x)),
        nnx_call=lambda model, x: model(abs(x)),
    )


def deeper(module, variables, x):
    """The output of the module with one layer more, which the variables hold."""
    module, _ = linen.add_layer(module, {"params": {}}, {})
    return module.apply(variables, x)


def add_copy_of_gate(din, num_layers, features):
    """As a layer of its own, the values of the head `gate`."""
    module = linen.GatedMLP(num_layers, features)

    def linen_edit(variables):
        layer = variables["params"]["heads_gate"]
        return linen.add_layer(module, variables, layer)[1]

    def nnx_edit(model):
        nnx_side.add_layer(model, nnx.clone(model.heads["gate"]))

    return Edit(linen_edit, nnx_edit, changes=[f"params/layers_{num_layers}"])


def plain_gated(weights, x):
    *layers, value, gate = weights
    for layer in layers:
        x = jax.nn.relu(plain_dense(layer, x))
    return plain_dense(value, x) * jax.nn.sigmoid(plain_dense(gate, x))


def plain_weights(variables):
    params = variables["params"]
    layers = [f"layers_{i}" for i in range(len(params) - 2)]
    return [params[name] for name in (*layers, "heads_value", "heads_gate")]


problem = Problem(
    linen,
    nnx_side,
    pair=gated,
    sizes=[(1, 12, 33), (5, 2, 5)],
    compared={
        "model": Compare(),
        "value": Compare(
            pair=head("value"), sizes=[(1, 2, 33), (5, 2, 5)], checks=OUTPUTS
        ),
        "gate": Compare(
            pair=head("gate"), sizes=[(1, 2, 33), (5, 2, 5)], checks=OUTPUTS
        ),
        "activations": Compare(
            pair=partial(
                gated, linen_call=linen.activations, nnx_call=nnx_side.activations
            ),
            checks=OUTPUTS,
        ),
        "add_layer": Compare(
            pair=partial(gated, linen_call=deeper),
            sizes=[(1, 11, 33), (5, 2, 5)],
            edit=add_copy_of_gate,
            checks=["edit", "outputs", "state", "round trip"],
        ),
        "scales": Compare(pair=scales, sizes=[(12, 33), (2, 5)]),
    },
    cost=Forward(
        plain=plain_gated,
        weights=plain_weights,
        size=lambda layers: (32, layers, 32),
        layers=[1, 4, 16],
    ),
    mistakes=[
        Mistake(
            "nnx",
            "value=nnx.Linear(features, features, rngs=rngs)",
            "values=nnx.Linear(features, features, rngs=rngs)",
            "model",
        ),
        Mistake(
            "nnx",
            'self.heads["value"](x) * gate',
            'self.heads["value"](x)',
            "model",
        ),
        Mistake(
            "nnx",
            "model.heads[name](model.body(x))",
            'model.heads["value"](model.body(x))',
            "gate",
        ),
        Mistake("nnx", "outputs.append(x)", "outputs.insert(0, x)", "activations"),
        Mistake(
            "nnx",
            "model.layers.append(layer)",
            "model.layers.insert(0, layer)",
            "add_layer",
        ),
        Mistake("nnx", "model.layers.append(layer)", "pass", "add_layer"),
        Mistake(
            "nnx",
            "x = nnx.relu(x * scale[...])",
            "x = x * nnx.relu(scale[...])",
            "scales",
        ),
        Mistake(
            "linen",
            'gate = nn.sigmoid(self.heads["gate"](x))',
            'gate = self.heads["gate"](x)',
            "model",
        ),
        Mistake(
            "linen",
            'f"layers_{module.num_layers}"',
            'f"layers_{module.num_layers - 1}"',
            "add_layer",
        ),
        Mistake(
            "linen", "m.heads[name](m.body(x))", 'm.heads["gate"](m.body(x))', "value"
        ),
        Mistake("linen", "x * scale", "x + scale", "scales"),
    ],
)
TestSetupSubmodules = problem.tests()


def test_activations_are_of_every_layer_and_the_last_is_that_of_the_body():
    pair = gated(1, 12, 33)
    outputs = nnx_side.activations(pair.model, *pair.arrays)
    assert len(outputs) == 12
    parity.assert_equal(pair.model.body(*pair.arrays), outputs[-1])


def test_add_layer_of_linen_gives_a_module_of_one_layer_more():
    pair = gated(5, 2, 5)
    module, _ = linen.add_layer(pair.linen, pair.variables, {})
    assert module == linen.GatedMLP(3, 5)


def test_every_array_of_a_plain_list_is_a_param():
    assert len(jax.tree.leaves(nnx.state(scales(12, 33).model, nnx.Param))) == 12


class Holder(nnx.Module):
    """Holds what it is given under the attribute `held`."""

    def __init__(self, held):
        self.held = held


@pytest.mark.parametrize("kind", ["list", "tuple", "dict"])
def test_pitfall_a_plain_container_of_layers(kind):
    """`ValueError: Found data on value of type '<class 'list'>' assigned to static
    attribute 'layers'`

    A plain list, tuple or dict of layers on an nnx module. Give it to `nnx.List` or
    `nnx.Dict`, or mark it with `nnx.data`.
    """
    layer = nnx.Linear(5, 5, rngs=nnx.Rngs(0))
    held = {"list": [layer], "tuple": (layer,), "dict": {"value": layer}}[kind]
    with pytest.raises(ValueError, match="Found data on value of type"):
        Holder(held)


def test_pitfall_a_slice_of_a_list_is_a_plain_list():
    """`ValueError: Found data on value of type '<class 'list'>'` from a slice

    `model.layers[:2]` is a plain list, also where `model.layers` is an `nnx.List`. Wrap
    the slice before you assign it.
    """
    model = gated(5, 3, 5).model
    assert type(model.layers[:2]) is list
    with pytest.raises(
        ValueError, match="Found data on value of type '<class 'list'>'"
    ):
        Holder(model.layers[:2])
    assert len(Holder(nnx.List(model.layers[:2])).held) == 2


def test_pitfall_an_empty_plain_list_is_accepted_and_its_layers_are_lost():
    """An empty plain list is accepted, and its layers are lost

    `self.layers = []` raises nothing, since it holds no layer yet. Layers appended to
    it later run, but are not in the state: they are neither trained nor saved.
    """
    model = Holder([])
    model.held.append(nnx.Linear(5, 5, rngs=nnx.Rngs(0)))
    model.held[0](jnp.ones(5))  # it runs
    assert not jax.tree.leaves(nnx.state(model))


def test_pitfall_an_optimizer_made_before_a_layer_was_appended():
    """`ValueError: pytree structure error: different numbers of pytree children`

    The optimizer was made before a layer was appended, and Adam has no moments for it.
    Make a new optimizer. Plain SGD keeps no state, so it takes the step.
    """
    model = gated(5, 1, 5).model
    sgd, adam = (
        nnx.Optimizer(model, tx, wrt=nnx.Param)
        for tx in (optax.sgd(0.1), optax.adam(0.1))
    )
    nnx_side.add_layer(model, nnx.Linear(5, 5, rngs=nnx.Rngs(1)))
    before = model.layers[1].kernel[...]
    gradients = nnx.state(model, nnx.Param)
    sgd.update(model, gradients)
    assert not np.array_equal(before, model.layers[1].kernel[...])
    with pytest.raises(ValueError, match="different numbers of pytree children"):
        adam.update(model, gradients)


def test_pitfall_the_index_in_a_path_is_an_integer():
    """`KeyError: 'Invalid key: 0'`

    The index in a path is an integer: `("layers", 0, "bias")`. Paths split from a
    string, such as `"layers/0/bias"`, have the text `"0"` there, which a list does not
    take.
    """
    model = gated(5, 2, 5).model
    before = model.layers[0].bias[...]
    with pytest.raises(KeyError, match="Invalid key: 0"):
        nnx.update(model, {"layers": {"0": {"bias": jnp.ones(5)}}})
    parity.assert_equal(before, model.layers[0].bias[...])
    nnx.update(model, {"layers": {0: {"bias": jnp.ones(5)}}})
    parity.assert_equal(jnp.ones(5), model.layers[0].bias[...])
    assert ("layers", 0, "bias") in dict(nnx.to_flat_state(nnx.state(model)))


def test_pitfall_linen_sorts_layers_10_before_layers_2():
    """Linen sorts `layers_10` before `layers_2`

    The leaves of both sides pair up by position for the first two layers only. Pair
    them by name.
    """
    pair = gated(5, 12, 5)
    ours = jax.tree.leaves(pair.variables["params"])
    theirs = jax.tree.leaves(nnx.state(pair.model, nnx.Param))
    same = [np.array_equal(a, b) for a, b in zip(ours, theirs)]
    heads, first_two = 4, 4  # leaves
    assert len(same) == len(ours) == len(theirs)
    assert same == [True] * (heads + first_two) + [False] * 20


class Ordered(nnx.Module):
    def __init__(self, names, rngs):
        for name in names:
            setattr(self, name, nnx.Linear(5, 5, rngs=rngs))


class LinenOrdered(nn.Module):
    names: tuple[str, ...]

    def setup(self):
        for name in self.names:
            setattr(self, name, nn.Dense(5))

    def __call__(self, x):
        return self.value(x) * self.gate(x)


def test_pitfall_nnx_initial_values_depend_on_the_order_of_construction():
    """Initial values follow the order of construction

    Swap two lines of an nnx constructor and the two layers swap their initial values.
    In Linen the order of the lines in `setup` does not matter.
    """
    orders = ("value", "gate"), ("gate", "value")
    first, second = (Ordered(names, nnx.Rngs(0)) for names in orders)
    np.testing.assert_array_equal(first.value.kernel, second.gate.kernel)
    assert not np.array_equal(first.value.kernel, second.value.kernel)
    key, x = jax.random.key(0), jnp.ones(5)
    first, second = (LinenOrdered(names).init(key, x) for names in orders)
    parity.assert_equal(first, second)


def test_pitfall_linen_containers_are_frozen():
    """Linen: `AttributeError: 'tuple' object has no attribute 'append'`

    Linen turns a list that `setup` assigns into a tuple, and a dict into a
    `FrozenDict`. An `nnx.List` can be appended to.
    """
    pair = gated(5, 2, 5)
    bound = pair.linen.bind(pair.variables)
    assert type(bound.heads) is FrozenDict
    with pytest.raises(
        AttributeError, match="'tuple' object has no attribute 'append'"
    ):
        bound.layers.append(nn.Dense(5))


def test_pitfall_an_unused_submodule_has_params_in_nnx_only():
    """A submodule that is never called has params in nnx only

    Linen makes params when a layer is first called: `init` of a method that uses no
    head gives no head. In nnx both heads are in the state from the start.
    """
    pair = gated(5, 2, 5)
    params = pair.linen.init(jax.random.key(0), *pair.arrays, method="body")["params"]
    assert set(params) == {"layers_0", "layers_1"}
    assert set(nnx.state(pair.model)) == {"layers", "heads"}
