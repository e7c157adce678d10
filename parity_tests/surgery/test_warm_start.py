import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

from linen2nnx import mapping, parity
from linen_impl.surgery import warm_start as linen
from nnx_impl.surgery import warm_start as nnx_side
from parity_tests.entry_inputs import entry_inputs, in_any_form
from parity_tests.random_pair import random_input, variable_shapes

CASES = [  # din, num_old, num_extra, features, seed, dtype, jit
    (1, 11, 2, 33, 0, jnp.float32, False),
    (5, 1, 1, 5, 1, jnp.bfloat16, True),
]
DEPTHS = (  # num_old, num_extra: few are deep, since each layer takes its time
    [(1, 0)] * 20 + [(1, 1)] * 12 + [(2, 1)] * 4 + [(1, 2)] * 3 + [(10, 2)]
)


def create_model(din, num_layers, features, seed=0):
    return nnx_side.MLP(
        din=din, num_layers=num_layers, features=features, rngs=nnx.Rngs(seed)
    )


class Pair:
    """A small and a big model on both sides, random in every leaf, and an input.

    Small and big are edited and compared as one, so that the small one is compared too.
    """

    def __init__(self, module, create, small, features, din, seed, dtype):
        self.module = module
        self.x = random_input(din, seed, dtype)
        target = {
            "small": variable_shapes(linen.MLP(small, features), din)["params"],
            "big": variable_shapes(module, din)["params"],
        }
        self.variables, self.model = parity.random_pair(
            {"params": target},
            nnx.eval_shape(
                lambda: nnx.Dict(small=create_model(din, small, features), big=create())
            ),
            seed=seed,
            dtype=dtype,
        )

    def side(self, name):
        return freeze({"params": self.variables["params"][name]})

    def assert_parity(self, linen_edit, nnx_edit, changes, jit):
        def edit_linen(both):
            small, big = ({"params": both["params"][name]} for name in ("small", "big"))
            edited = linen_edit(freeze(small), freeze(big))
            return {"params": {**both["params"], "big": edited["params"].unfreeze()}}

        parity.assert_parity(
            lambda both, x: self.module.apply({"params": both["params"]["big"]}, x),
            self.variables,
            self.model,
            self.x,
            call=lambda both, x: both.big(x),
            edit=parity.Edit(
                linen=edit_linen,
                nnx=lambda both: nnx_edit(both.small, both.big),
                changes=[f"params/big/{name}" for name in changes],
            ),
            jit=jit,
        )


def pair(din, small, extra, features, seed=0, dtype=jnp.float32):
    return Pair(
        linen.MLP(small + extra, features),
        lambda: create_model(din, small + extra, features),
        small,
        features,
        din,
        seed,
        dtype,
    )


def residual_pair(din, small, blocks, features, seed=0, dtype=jnp.float32):
    return Pair(
        linen.ResidualMLP(small, blocks, features),
        lambda: nnx_side.ResidualMLP(
            din=din,
            num_layers=small,
            num_blocks=blocks,
            features=features,
            rngs=nnx.Rngs(0),
        ),
        small,
        features,
        din,
        seed,
        dtype,
    )


def layer_names(stop):
    return [f"layers_{i}" for i in range(stop)]


@pytest.mark.parametrize(
    ("din", "small", "extra", "features", "seed", "dtype", "jit"), CASES
)
def test_copy_layers(din, small, extra, features, seed, dtype, jit):
    both = pair(din, small, extra, features, seed, dtype)
    both.assert_parity(linen.copy_layers, nnx_side.copy_layers, layer_names(small), jit)


@pytest.mark.parametrize(
    ("din", "small", "extra", "features", "seed", "dtype", "jit"), CASES
)
def test_grow_by_identity(din, small, extra, features, seed, dtype, jit):
    both = pair(din, small, extra, features, seed, dtype)
    both.assert_parity(
        linen.grow_by_identity,
        nnx_side.grow_by_identity,
        layer_names(small + extra),
        jit,
    )
    nnx_side.grow_by_identity(both.model.small, both.model.big)
    parity.assert_equal(both.model.small(both.x), both.model.big(both.x))
    small_variables = both.side("small")
    grown = linen.grow_by_identity(small_variables, both.side("big"))
    parity.assert_equal(
        linen.MLP(small, features).apply(small_variables, both.x),
        both.module.apply(grown, both.x),
    )


@pytest.mark.parametrize(
    ("din", "small", "blocks", "features", "seed", "dtype", "jit"), CASES
)
def test_grow_by_residual(din, small, blocks, features, seed, dtype, jit):
    both = residual_pair(din, small, blocks, features, seed, dtype)
    changes = layer_names(small) + [f"blocks_{i}" for i in range(blocks)]
    both.assert_parity(linen.grow_by_residual, nnx_side.grow_by_residual, changes, jit)
    nnx_side.grow_by_residual(both.model.small, both.model.big)
    parity.assert_equal(both.model.small(both.x), both.model.big(both.x))
    small_variables = both.side("small")
    grown = linen.grow_by_residual(small_variables, both.side("big"))
    parity.assert_equal(
        linen.MLP(small, features).apply(small_variables, both.x),
        both.module.apply(grown, both.x),
    )


def test_residual_model_before_it_is_grown():
    """Zero branches hide the blocks: compare the model also with random ones."""
    both = residual_pair(5, 2, 2, 5)
    parity.assert_parity(both.module, both.side("big"), both.model.big, both.x)


def test_add_layer_warm_start(nnx_mode):
    for rng, seed, x, features in entry_inputs(nnx_mode):
        num_old, num_extra = rng.choice(DEPTHS)
        arguments = (
            seed,
            x,
            in_any_form(rng, num_old),
            in_any_form(rng, num_extra),
            features,
        )
        din, width, old, new = len(x), int(features), int(num_old), int(num_extra)
        small = create_model(din, old, width, int(seed))
        big = create_model(din, old + new, width, int(seed) + 1000)
        variables = [
            mapping.to_linen(model, variable_shapes(linen.MLP(depth, width), din))
            for model, depth in ((small, old), (big, old + new))
        ]

        output = nnx_side.add_layer_warm_start(*arguments)

        parity.assert_equal(
            linen.add_layer_warm_start(
                *arguments, small_variables=variables[0], big_variables=variables[1]
            ),
            output,
        )
        plain = jnp.asarray(x, jnp.float32)
        for layer in [*small.layers, *big.layers[old:]]:
            plain = jnp.dot(plain, layer.kernel[...]) + layer.bias[...]
        parity.assert_equal(plain, output)


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
    small, big = create_model(5, 2, 5, seed=0), create_model(5, 3, 5, seed=0)
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
    model = pair(5, 2, 1, 5).model
    model.big.layers[0].kernel = model.small.layers[0].kernel
    model.small.layers[0].kernel[...] = jnp.zeros((5, 5))
    np.testing.assert_array_equal(model.big.layers[0].kernel[...], jnp.zeros((5, 5)))


def test_pitfall_a_tied_pair_cannot_be_split_in_tree_mode(nnx_mode):
    """`ValueError: Duplicate Param`

    In tree mode, `nnx.split` of a model that holds both networks raises this once one
    of them shares a Variable with the other, as in `big.layers[0].kernel =
    small.layers[0].kernel`. In graph mode the split is accepted. Copy the array:
    `nnx.Param(small.layers[0].kernel[...])`.
    """
    model = pair(5, 2, 1, 5).model
    model.big.layers[0].kernel = model.small.layers[0].kernel
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
    both = pair(5, 2, 1, 5)
    edited = linen.copy_layers(both.side("big"), both.side("small"))
    assert set(edited["params"]) == {"layers_0", "layers_1", "layers_2"}
    linen.MLP(2, 5).apply(edited, both.x)  # no error
    with pytest.raises(IndexError):
        nnx_side.copy_layers(both.model.big, both.model.small)


def test_pitfall_identity_layers_need_a_zero_bias():
    """An identity layer needs a zero bias too

    With an identity kernel and the bias it had, the new layer still shifts the output.
    Zero the bias and the outputs are equal bit for bit.
    """
    both = pair(5, 1, 1, 5)
    model = both.model
    nnx_side.copy_layers(model.small, model.big)
    model.big.layers[1].kernel = nnx.Param(jnp.eye(5))
    assert not np.array_equal(model.small(both.x), model.big(both.x))
    model.big.layers[1].bias = nnx.Param(jnp.zeros(5))
    np.testing.assert_array_equal(model.small(both.x), model.big(both.x))
