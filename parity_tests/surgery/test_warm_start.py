"""Parity, cost and pitfalls of `surgery/warm_start`."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linen2nnx import Pair, parity
from linen2nnx.cost.forward import Edited, plain_apply, plain_layers
from linen2nnx.suite.entry import Entry
from linen2nnx.suite.problem import Compare, Mistake, Problem
from linen_impl.surgery import warm_start as linen
from nnx_impl.surgery import warm_start as nnx_side
from parity_tests.two_models import edit_target, of_linen, two_models

EXPECTED = [
    {
        "flax": "<0.12.0",
        "modes": ["graph"],
        "verdict": "not there yet",
        "cause": "the layers are in an nnx.List, since 0.12.0",
    },
]

# din, layers, layers or blocks more, features; op by op, the gradients of many are slow
SIZES = [(1, 2, 2, 33), (5, 1, 1, 5)]
DEEP_SIZES = [(1, 11, 2, 33), (5, 1, 1, 5)]


def mlp(din, num_layers, features):
    create = partial(nnx_side.MLP, din, num_layers, features)
    return Pair(linen.MLP(num_layers, features), create, [(din,)])


def residual(din, num_layers, num_blocks, features):
    create = partial(nnx_side.ResidualMLP, din, num_layers, num_blocks, features)
    return Pair(linen.ResidualMLP(num_layers, num_blocks, features), create, [(din,)])


def small_and_big(din, small, extra, features):
    return two_models(mlp(din, small, features), mlp(din, small + extra, features))


def small_and_residual(din, small, blocks, features):
    return two_models(mlp(din, small, features), residual(din, small, blocks, features))


def names(prefix, stop):
    return [f"{prefix}_{i}" for i in range(stop)]


def copy_layers(din, small, extra, features):
    return edit_target(linen.copy_layers, nnx_side.copy_layers, names("layers", small))


def grow_by_identity(din, small, extra, features):
    changes = names("layers", small + extra)
    return edit_target(linen.grow_by_identity, nnx_side.grow_by_identity, changes)


def grow_by_residual(din, small, blocks, features):
    changes = names("layers", small) + names("blocks", blocks)
    return edit_target(linen.grow_by_residual, nnx_side.grow_by_residual, changes)


def start(seed, din, old, extra, features):
    small, big = mlp(din, old, features), mlp(din, old + extra, features)
    return {
        "small_variables": small.variables_of(small.model_from(seed)),
        "big_variables": big.variables_of(big.model_from(seed + 1000)),
    }


def plain_copied(small, big):
    return [*small, *big[len(small) :]]


def assign_layers(small, big):
    nnx_side.copy_layers(small, big)
    return big


def update_layers(small, big):
    nnx.update(big, nnx.state(small))
    return big


def merge_layers(small, big):
    graphdef, state = nnx.split(big)
    state = nnx.merge_state(state, nnx.state(small))
    return nnx.merge(graphdef, state, copy=True)


problem = Problem(
    linen,
    nnx_side,
    pair=mlp,
    sizes=[(5, 2, 5)],
    compared={
        "model": Compare(),
        "copy_layers": Compare(pair=small_and_big, sizes=DEEP_SIZES, edit=copy_layers),
        "grow_by_identity": Compare(
            pair=small_and_big, sizes=SIZES, edit=grow_by_identity
        ),
        "grow_by_residual": Compare(
            pair=small_and_residual, sizes=SIZES, edit=grow_by_residual
        ),
        # zero branches hide the blocks: random ones show them
        "residual_model": Compare(pair=residual, sizes=[(5, 2, 2, 5)]),
    },
    entry=Entry(
        name="add_layer_warm_start",
        arguments={"num_old_layers": 2, "num_extra_layers": 1, "features": 2},
        sizes=(
            (1, 1, 0, 33),
            (33, 1, 1, 1),
            (5, 1, 1, 5),
            (5, 2, 1, 5),
            (5, 1, 2, 5),
            (5, 10, 2, 5),
        ),
        start=start,
        limit=lambda small, big, x: plain_apply(
            plain_copied(plain_layers(small), plain_layers(big)), x
        ),
    ),
    cost=Edited(
        linen=linen.copy_layers,
        nnx={
            "attribute assignment": assign_layers,
            "nnx.update": update_layers,
            "split/map/merge": merge_layers,
        },
        plain=plain_copied,
        edited=lambda layers: (
            f"layers_{layers - 1}/kernel",
            f"layers/{layers - 1}/kernel",
        ),
        size=lambda layers: (32, layers + 1, 32),
        source=lambda layers: (32, layers, 32),
        layers=[1, 4, 16, 64],
    ),
    mistakes=[
        Mistake(
            "nnx",
            "big.layers[i].bias = nnx.Param(layer.bias[...])",
            "pass",
            "copy_layers",
        ),
        Mistake(
            "nnx", "big.layers[i].kernel", "big.layers[i - 1].kernel", "copy_layers"
        ),
        Mistake(
            "nnx",
            "len(small.layers) :",
            "len(small.layers) + 1 :",
            "grow_by_identity",
        ),
        Mistake(
            "nnx",
            "layer.bias = nnx.Param(jnp.zeros_like(bias))",
            "pass",
            "grow_by_identity",
        ),
        Mistake("nnx", "x + branch(nnx.relu(x))", "x + branch(x)", "residual_model"),
        Mistake(
            "nnx",
            "nnx.Param(jnp.zeros_like(bias))",
            "nnx.Param(bias)",
            "grow_by_residual",
        ),
        Mistake(
            "linen",
            '{**big["params"], **small["params"]}',
            '{**small["params"], **big["params"]}',
            "copy_layers",
        ),
        Mistake(
            "linen",
            "jnp.eye(width, dtype=dtype)",
            "-jnp.eye(width, dtype=dtype)",
            "grow_by_identity",
        ),
        Mistake(
            "linen",
            "x + branch(nn.relu(x))",
            "x - branch(nn.relu(x))",
            "residual_model",
        ),
    ],
)
TestWarmStart = problem.tests()


@pytest.mark.parametrize(
    ("size", "dtype"), [*zip(DEEP_SIZES, [jnp.float32, jnp.bfloat16])]
)
@pytest.mark.parametrize(
    ("pair", "grow"),
    [(small_and_big, "grow_by_identity"), (small_and_residual, "grow_by_residual")],
)
def test_the_grown_model_computes_what_the_small_one_did(pair, grow, size, dtype):
    both = replace(pair(*size), dtype=dtype)
    model, module, (x,) = both.model, both.linen, both.arrays
    getattr(nnx_side, grow)(model.source, model.target)
    parity.assert_equal(model.source(x), model.target(x))
    small = of_linen(both.variables, "source")
    grown = getattr(linen, grow)(small, of_linen(both.variables, "target"))
    parity.assert_equal(module.source.apply(small, x), module.target.apply(grown, x))


@pytest.mark.parametrize("extra", [0, 2])
def test_linen_entry_from_its_own_seed(extra):
    """The seeds of the two models are `seed` and `seed + 1000`."""
    x = jnp.arange(5.0)
    small = linen.MLP(2, 5).init(jax.random.key(41), x)["params"]
    big = linen.MLP(2 + extra, 5).init(jax.random.key(1041), x)["params"]
    expected = linen.MLP(2 + extra, 5).apply({"params": {**big, **small}}, x)
    parity.assert_equal(expected, linen.add_layer_warm_start(41, x, 2, extra, 5))


def test_pitfall_the_same_seed_hides_a_missing_copy():
    """The same seed on both models hides a missing copy

    Layers built in the same order from one seed are equal, copied or not, on both
    sides. A test that seeds both models alike passes without the copy. Give them
    different seeds.
    """
    small, big = (mlp(5, depth, 5).model_from(0) for depth in (2, 3))
    for i in range(2):
        np.testing.assert_array_equal(small.layers[i].kernel, big.layers[i].kernel)
    key, x = jax.random.key(0), jnp.ones(5)
    small, big = (linen.MLP(depth, 5).init(key, x)["params"] for depth in (2, 3))
    for name in small:
        np.testing.assert_array_equal(small[name]["kernel"], big[name]["kernel"])


def test_pitfall_copying_the_variable_ties_the_two_models():
    """Assigning the Param itself ties the two models

    After `big.layers[0].kernel = small.layers[0].kernel` both models hold one Variable:
    writing to the small model's kernel changes the big model's.
    """
    model = small_and_big(5, 2, 1, 5).model
    model.target.layers[0].kernel = model.source.layers[0].kernel
    model.source.layers[0].kernel[...] = jnp.zeros((5, 5))
    np.testing.assert_array_equal(model.target.layers[0].kernel[...], jnp.zeros((5, 5)))


def test_pitfall_a_tied_pair_cannot_be_split_in_tree_mode(nnx_mode):
    """`ValueError: Duplicate Param`

    In tree mode, `nnx.split` of a model that holds both networks raises this once one
    of them shares a Variable with the other, as in `big.layers[0].kernel =
    small.layers[0].kernel`. In graph mode the split is accepted. Copy the array:
    `nnx.Param(small.layers[0].kernel[...])`.
    """
    model = small_and_big(5, 2, 1, 5).model
    model.target.layers[0].kernel = model.source.layers[0].kernel
    if nnx_mode == "graph":
        nnx.split(model)
    else:
        with pytest.raises(ValueError, match="Duplicate Param"):
            nnx.split(model)


def test_pitfall_linen_drops_layers_that_the_big_model_lacks():
    """Linen: layers that the big model lacks are dropped

    Pass small and big in the wrong order and the Linen spread yields one layer too
    many, which `apply` ignores. The nnx loop raises an `IndexError`.
    """
    small, big = mlp(5, 2, 5), mlp(5, 3, 5)
    edited = linen.copy_layers(big.variables, small.variables)
    assert set(edited["params"]) == {"layers_0", "layers_1", "layers_2"}
    small.linen.apply(edited, *small.arrays)  # no error
    with pytest.raises(IndexError):
        nnx_side.copy_layers(big.model, small.model)


def test_pitfall_identity_layers_need_a_zero_bias():
    """An identity layer needs a zero bias too

    With an identity kernel and the bias it had, the new layer still shifts the output.
    Zero the bias and the outputs are equal bit for bit.
    """
    both = small_and_big(5, 1, 1, 5)
    small, big, (x,) = both.model.source, both.model.target, both.arrays
    nnx_side.copy_layers(small, big)
    big.layers[1].kernel = nnx.Param(jnp.eye(5))
    assert not np.array_equal(small(x), big(x))
    big.layers[1].bias = nnx.Param(jnp.zeros(5))
    np.testing.assert_array_equal(small(x), big(x))
