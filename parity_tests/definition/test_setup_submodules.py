import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict, unfreeze

from linen2nnx import mapping, parity
from linen_impl.definition import setup_submodules as linen
from nnx_impl.definition import setup_submodules as nnx_side
from parity_tests.entry_inputs import entry_inputs, in_any_form
from parity_tests.random_pair import random_pair, variable_shapes

CASES = [  # din, num_layers, features, seed, dtype, jit
    (1, 12, 33, 0, jnp.float32, False),
    (5, 2, 5, 1, jnp.bfloat16, True),
]


def create_model(din, num_layers, features, seed=0):
    return nnx_side.GatedMLP(din, num_layers, features, rngs=nnx.Rngs(seed))


def pair(din, num_layers, features, seed=0, dtype=jnp.float32):
    module = linen.GatedMLP(num_layers, features)
    variables, model, x = random_pair(
        module, lambda: create_model(din, num_layers, features), din, seed, dtype
    )
    return module, unfreeze(variables), model, x


@pytest.mark.parametrize(
    ("din", "num_layers", "features", "seed", "dtype", "jit"), CASES
)
def test_model(din, num_layers, features, seed, dtype, jit):
    module, variables, model, x = pair(din, num_layers, features, seed, dtype)
    parity.assert_parity(module, variables, model, x, jit=jit)


@pytest.mark.parametrize("head", ["value", "gate"])
@pytest.mark.parametrize(
    ("din", "num_layers", "features", "seed", "dtype", "jit"),
    [(1, 2, 33, 0, jnp.float32, False), CASES[1]],
)
def test_apply_head(head, din, num_layers, features, seed, dtype, jit):
    module, variables, model, x = pair(din, num_layers, features, seed, dtype)
    parity.assert_parity(
        lambda variables, x: linen.apply_head(module, variables, x, head),
        variables,
        model,
        x,
        call=lambda model, x: nnx_side.apply_head(model, x, head),
        jit=jit,
        checks=["outputs", "state"],
    )


@pytest.mark.parametrize(
    ("din", "num_layers", "features", "seed", "dtype", "jit"), CASES
)
def test_activations(din, num_layers, features, seed, dtype, jit):
    module, variables, model, x = pair(din, num_layers, features, seed, dtype)
    parity.assert_parity(
        lambda variables, x: linen.activations(module, variables, x),
        variables,
        model,
        x,
        call=nnx_side.activations,
        jit=jit,
        checks=["outputs", "state"],
    )
    outputs = nnx_side.activations(model, x)
    assert len(outputs) == num_layers
    parity.assert_equal(model.body(x), outputs[-1])


@pytest.mark.parametrize(
    ("din", "num_layers", "features", "seed", "dtype", "jit"),
    [(1, 11, 33, 0, jnp.float32, False), CASES[1]],
)
def test_add_layer(din, num_layers, features, seed, dtype, jit):
    module, variables, model, x = pair(din, num_layers, features, seed, dtype)
    params, layer, _ = random_pair(
        nn.Dense(features),
        lambda: nnx.Linear(features, features, rngs=nnx.Rngs(0)),
        features,
        seed + 1,
        dtype,
    )
    layer_params = unfreeze(params)["params"]
    deeper, _ = linen.add_layer(module, variables, layer_params)
    edit = parity.Edit(
        linen=lambda variables: linen.add_layer(module, variables, layer_params)[1],
        nnx=lambda model: nnx_side.add_layer(model, nnx.clone(layer)),
        changes=[f"params/layers_{num_layers}"],
    )
    assert deeper == linen.GatedMLP(num_layers + 1, features)
    parity.assert_parity(
        lambda variables, x: deeper.apply(variables, x),
        variables,
        model,
        x,
        edit=edit,
        jit=jit,
        checks=["edit", "outputs", "state", "round trip"],
    )


@pytest.mark.parametrize(
    ("num_layers", "features", "dtype", "jit"),
    [(12, 33, jnp.float32, False), (2, 5, jnp.bfloat16, True)],
)
def test_scales(num_layers, features, dtype, jit):
    module = linen.Scales(num_layers, features)
    variables, model, x = random_pair(
        module, lambda: nnx_side.Scales(num_layers, features), features, 0, dtype
    )
    parity.assert_parity(module, variables, model, abs(x), jit=jit)
    assert len(jax.tree.leaves(nnx.state(model, nnx.Param))) == num_layers


def test_setup_submodules(nnx_mode):
    for rng, seed, x, features in entry_inputs(nnx_mode):
        depth, width = int(rng.choice([1, 1, 2])), int(features)
        arguments = seed, x, in_any_form(rng, depth), features
        model = create_model(len(x), depth, width, int(seed))
        shapes = variable_shapes(linen.GatedMLP(depth, width), len(x))
        variables = mapping.to_linen(model, shapes)

        output = nnx_side.setup_submodules(*arguments)

        parity.assert_equal(
            linen.setup_submodules(*arguments, variables=variables), output
        )
        plain = jnp.asarray(x, jnp.float32)
        for layer in model.layers:
            plain = jnp.dot(plain, layer.kernel[...]) + layer.bias[...]
            plain = jnp.maximum(plain, 0)
        value, gate = (
            jnp.dot(plain, head.kernel[...]) + head.bias[...]
            for head in (model.heads["value"], model.heads["gate"])
        )
        parity.assert_equal(value * jax.nn.sigmoid(gate), output)


def test_linen_entry_from_its_own_seed():
    x = jnp.arange(5.0)
    module = linen.GatedMLP(2, 5)
    expected = module.apply(module.init(jax.random.key(7), x), x)
    parity.assert_equal(expected, linen.setup_submodules(7, x, 2, 5))


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
    model = create_model(5, 3, 5)
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
    model = create_model(5, 1, 5)
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
    model = create_model(5, 2, 5)
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
    _, variables, model, _ = pair(5, 12, 5)
    ours = jax.tree.leaves(variables["params"])
    theirs = jax.tree.leaves(nnx.state(model, nnx.Param))
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
    module, variables, _, _ = pair(5, 2, 5)
    bound = module.bind(variables)
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
    x = jnp.ones(5)
    module = linen.GatedMLP(2, 5)
    params = module.init(jax.random.key(0), x, method="body")["params"]
    assert set(params) == {"layers_0", "layers_1"}
    assert set(nnx.state(create_model(5, 2, 5))) == {"layers", "heads"}
