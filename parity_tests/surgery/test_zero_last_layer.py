import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linen2nnx import mapping, parity
from linen_impl.surgery import zero_last_layer as linen
from nnx_impl.surgery import zero_last_layer as nnx_side
from parity_tests.entry_inputs import entry_inputs, in_any_form
from parity_tests.random_pair import random_pair, variable_shapes

CASES = [  # din, num_layers, features, seed, dtype, jit
    (1, 12, 33, 0, jnp.float32, False),
    (5, 2, 5, 1, jnp.bfloat16, True),
]
DEPTHS = [1] * 22 + [2] * 12 + [3] * 4 + [12]  # few are deep: each layer takes its time

SWEEP_CASES = [  # a sweep applies the model num_layers + 1 times: fewer layers
    (1, 3, 33, 0, jnp.float32, False),
    (5, 2, 5, 1, jnp.bfloat16, True),
]


def create_model(din, num_layers, features, seed=0):
    return nnx_side.MLP(
        din=din, num_layers=num_layers, features=features, rngs=nnx.Rngs(seed)
    )


def pair(din, num_layers, features, seed=0, dtype=jnp.float32):
    module = linen.MLP(num_layers, features)
    return module, *random_pair(
        module, lambda: create_model(din, num_layers, features), din, seed, dtype
    )


@pytest.mark.parametrize(
    ("din", "num_layers", "features", "seed", "dtype", "jit"), CASES
)
def test_zero_last_kernel(din, num_layers, features, seed, dtype, jit):
    module, variables, model, x = pair(din, num_layers, features, seed, dtype)
    edit = parity.Edit(
        linen=linen.zero_last_kernel,
        nnx=nnx_side.zero_last_kernel,
        changes=[f"params/layers_{num_layers - 1}/kernel"],
    )
    parity.assert_parity(module, variables, model, x, edit=edit, jit=jit)


@pytest.mark.parametrize(
    ("din", "num_layers", "features", "seed", "dtype", "jit"), SWEEP_CASES
)
def test_ablation_sweep(din, num_layers, features, seed, dtype, jit):
    """The sweep is the output, so that gradients go through it and state is unmoved."""
    module, variables, model, x = pair(din, num_layers, features, seed, dtype)
    parity.assert_parity(
        lambda variables, x: linen.ablation_sweep(module, variables, x),
        variables,
        model,
        x,
        call=nnx_side.ablation_sweep,
        jit=jit,
    )
    assert nnx_side.ablation_sweep(model, x).shape == (num_layers,)


def assert_same_sweep(num_layers):
    """Its outputs and state only: op by op, the gradients take seconds."""
    module, variables, model, x = pair(1, num_layers, 33)
    parity.assert_parity(
        lambda variables, x: linen.ablation_sweep(module, variables, x),
        variables,
        model,
        x,
        call=nnx_side.ablation_sweep,
        checks=["outputs", "state"],
    )


def test_ablation_sweep_of_one_layer():
    assert_same_sweep(1)


def test_ablation_sweep_past_ten_layers():
    assert_same_sweep(11)


def test_ablation_sweep_is_the_distance_without_each_layer():
    _, _, model, x = pair(5, 3, 5)
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


def test_zero_last_layer_kernel(nnx_mode):
    for rng, seed, x, features in entry_inputs(nnx_mode):
        num_layers = rng.choice(DEPTHS)
        arguments = seed, x, in_any_form(rng, num_layers), features
        din, width, depth = len(x), int(features), int(num_layers)
        model = create_model(din, depth, width, int(seed))
        module = linen.MLP(depth, width)
        variables = mapping.to_linen(model, variable_shapes(module, din))

        output = nnx_side.zero_last_layer_kernel(*arguments)

        parity.assert_equal(
            linen.zero_last_layer_kernel(*arguments, variables=variables), output
        )
        y = jnp.asarray(x, jnp.float32)
        for layer in model.layers[:-1]:
            y = jnp.dot(y, layer.kernel[...]) + layer.bias[...]
        last = model.layers[-1]
        plain = jnp.dot(y, jnp.zeros_like(last.kernel[...])) + last.bias[...]
        parity.assert_equal(plain, output)


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
    _, _, model, _ = pair(5, 2, 5)
    with pytest.raises(IndexError):
        model.layers[2]


def test_pitfall_linen_adds_a_layer_that_no_one_applies():
    """Linen: the spread adds a layer that no one applies

    An edit under `layers_2` of a model of two layers adds a third key. `apply` ignores
    it and the output is unchanged.
    """
    module, variables, _, x = pair(5, 2, 5)
    params = variables["params"]
    extra = jax.tree.map(jnp.zeros_like, params["layers_1"])
    edited = {"params": {**params, "layers_2": extra}}
    parity.assert_equal(module.apply(variables, x), module.apply(edited, x))


def test_pitfall_the_last_name_is_not_the_last_layer():
    """Linen: `max(params)` is not the last layer

    With twelve layers the largest name is `layers_9`, because names compare as text.
    The last layer is `layers_11`; nnx has it at `model.layers[-1]`.
    """
    _, variables, model, _ = pair(5, 12, 5)
    assert max(variables["params"]) == "layers_9"
    last = variables["params"]["layers_11"]["kernel"]
    np.testing.assert_array_equal(model.layers[-1].kernel[...], last)


def test_pitfall_leaves_are_in_another_order_past_ten_layers():
    """Past ten layers the leaves come in another order

    Linen sorts `layers_10` and `layers_11` before `layers_2`; an `nnx.List` counts.
    Leaves paired by position, as in `zip(jax.tree.leaves(a), jax.tree.leaves(b))`, are
    mismatched from the third layer on. Pair them by path.
    """
    _, variables, model, _ = pair(5, 12, 5)
    ours, theirs = jax.tree.leaves(variables), jax.tree.leaves(nnx.state(model))
    differing = [
        i for i in range(24) if not np.array_equal(ours[i], theirs[i])
    ]  # two leaves a layer: layers_10 and layers_11 come after layers_1
    assert differing == list(range(4, 24))
