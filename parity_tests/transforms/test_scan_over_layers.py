"""Parity, cost and pitfalls of `transforms/scan_over_layers`."""

from dataclasses import replace
from functools import partial
from unittest import mock

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
from linen2nnx.suite.problem import Mistake, Problem
from linen_impl.transforms import scan_over_layers as linen
from nnx_impl.transforms import scan_over_layers as nnx_side

EXPECTED = [
    {
        "flax": "<0.11.0",
        "modes": ["graph"],
        "verdict": "fails",
        "cause": "a dropout holds the Rngs that it got, whose keys "
        "nnx.split_rngs puts together again",
    },
    {
        "flax": ">=0.11.0,<0.12.0",
        "modes": ["graph"],
        "verdict": "not there yet",
        "cause": "the layers that are stacked are in an nnx.List, since 0.12.0",
    },
    {
        "flax": "==0.12.6",
        "modes": ["tree"],
        "verdict": "differs",
        "cause": "nnx.scan in tree mode returns the carry that it was given",
    },
]


def scanned(din, num_layers, features):
    return Pair(
        linen.ScannedMLP(num_layers, features),
        partial(nnx_side.ScannedMLP, din, num_layers, features),
        [(din,)],
    )


def dropout_stack(num_layers, features, train):
    """With dropout and BatchNorm, of a batch."""

    def create(rngs):
        model = nnx_side.DropoutStack(num_layers, features, 0.5, rngs=rngs)
        if not train:
            model.eval()
        return model

    return Pair(
        linen.DropoutStack(num_layers, features, 0.5),
        create,
        [(5, features)],
        linen_kwargs={"train": train},
    )


def plain_scan(weights, x):
    def forward(x, layer):
        return x + jax.nn.relu(plain_dense(layer, x)), None

    proj, layers = weights
    return jax.lax.scan(forward, plain_dense(proj, x), layers)[0]


def plain_weights(variables):
    return variables["params"]["proj"], variables["params"]["layers"]["dense"]


STACKED = "test_stack_of_unstacked_layers_is_the_same"

problem = Problem(
    linen,
    nnx_side,
    pair=scanned,
    sizes=[(3, 2, 3), (33, 11, 1)],
    cost=Forward(
        plain=plain_scan,
        weights=plain_weights,
        size=lambda layers: (32, layers, 32),
        layers=[1, 4, 16, 64],
    ),
    mistakes=[
        Mistake(
            "nnx", "x + nnx.relu(self.dense(x))", "nnx.relu(self.dense(x))", "model"
        ),
        Mistake(
            "nnx",
            "in_axes=(nnx.Carry, 0), out_axes=nnx.Carry",
            "in_axes=(nnx.Carry, 0), out_axes=nnx.Carry, reverse=True",
            "model",
        ),
        Mistake(
            "nnx",
            "return forward(self.proj(x), self.layers)",
            "return forward(forward(self.proj(x), self.layers), self.layers)",
            "model",
        ),
        Mistake(
            "nnx",
            "return DropoutBlock(features, rate, rngs=rngs)",
            "return DropoutBlock(features, rate, rngs=nnx.Rngs(0))",
            "test_each_layer_has_its_own_initial_values_and_masks",
        ),
        Mistake("nnx", "leaf[i], state", "leaf[0], state", STACKED),
        Mistake(
            "nnx",
            "layer in layers]",
            "layer in layers[::-1]]",
            STACKED,
        ),
        Mistake(
            "nnx",
            "self.dropout(self.norm(self.dense(x)))",
            "self.norm(self.dropout(self.dense(x)))",
            "test_dropout_stack",
        ),
        Mistake("linen", "x + nn.relu(", "x + (", "model"),
        Mistake(
            "linen",
            'params[f"layers_{i}"] for i in indices',
            "params[name] for name in sorted(params.keys() - rest.keys())",
            STACKED,
        ),
        Mistake(
            "linen",
            '{**rest, "layers": stack}',
            '{"layers": stack}',
            STACKED,
        ),
        Mistake(
            "linen",
            '"dropout": True',
            '"dropout": False',
            "test_linen_masks_differ_by_layer",
        ),
        Mistake(
            "linen",
            '"params": True, "dropout": True',
            '"params": False, "dropout": True',
            "test_each_layer_has_its_own_initial_values_and_masks",
        ),
        Mistake("linen", '"batch_stats": 0', '"batch_stats": 1', "test_dropout_stack"),
    ],
)
TestScanOverLayers = problem.tests()


class LinenLoop(nn.Module):
    """The same blocks in a Python loop."""

    num_layers: int
    features: int

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.features, name="proj")(x)
        for i in range(self.num_layers):
            x = linen.Block(self.features, name=f"layers_{i}")(x)
        return x


class NNXLoop(nnx.Module):
    """The same blocks in a Python loop."""

    def __init__(self, proj, layers):
        self.proj = proj
        self.layers = layers

    def __call__(self, x):
        x = self.proj(x)
        for layer in self.layers:
            x = layer(x)
        return x


def kernels(num_layers, features, **split_rngs):
    """Those of a Linen stack, initialised with these `split_rngs`."""

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            scan = nn.scan(
                lambda block, x, _: (block(x), None),
                variable_axes={"params": 0},
                split_rngs=split_rngs,
                length=num_layers,
            )
            return scan(linen.Block(features, name="layers"), x, None)[0]

    variables = Stack().init(jax.random.key(0), jnp.ones(features))
    return variables["params"]["layers"]["dense"]["kernel"]


@pytest.mark.parametrize(("train", "jit"), [(True, True), (False, False)])
def test_dropout_stack(train, jit):
    """The same mask in every layer, of one key: the sides derive keys differently."""
    key = jax.random.key(5)
    with (
        mock.patch.object(nn.Module, "make_rng", return_value=key),
        mock.patch.object(nnx.RngStream, "__call__", return_value=key),
    ):
        parity.assert_parity(dropout_stack(2, 3, train), jit=jit)


def test_unstacked_layers_compute_the_same_in_both_loops():
    pair = scanned(3, 12, 3)
    loop = NNXLoop(pair.model.proj, nnx_side.unstack_layers(pair.model.layers))
    params = linen.unstack_layers(pair.variables["params"])
    parity.assert_parity(LinenLoop(12, 3), {"params": params}, loop, *pair.arrays)


def test_stack_of_unstacked_layers_is_the_same():
    """Twelve layers: `layers_10` comes before `layers_2` in the order of names."""
    pair = scanned(3, 12, 3)
    variables, model = pair.variables, pair.model
    params = linen.unstack_layers(variables["params"])
    parity.assert_equal(variables["params"], linen.stack_layers(params))
    by_name = {name: params[name] for name in sorted(params)}
    parity.assert_equal(variables["params"], linen.stack_layers(by_name))
    model.layers = nnx_side.stack_layers(nnx_side.unstack_layers(model.layers))
    parity.assert_equal(variables, pair.variables_of(model))


def test_params_of_other_names_stay_out_of_the_stack():
    layers = {f"layers_{i}": jnp.float32(i) for i in range(11)}
    params = {"embed": jnp.float32(-1), **layers}
    stacked = linen.stack_layers(params)
    assert [*stacked] == ["embed", "layers"]
    assert stacked["layers"].tolist() == [*range(11)]
    parity.assert_equal(params, linen.unstack_layers(stacked))


def test_the_loop_computes_what_the_scan_does():
    pair = scanned(3, 2, 3)
    variables, model, (x,) = pair.variables, pair.model, pair.arrays
    loop = NNXLoop(model.proj, nnx_side.unstack_layers(model.layers))
    params = linen.unstack_layers(variables["params"])
    parity.assert_equal(pair.linen.apply(variables, x), model(x))
    parity.assert_equal(LinenLoop(2, 3).apply({"params": params}, x), model(x))
    parity.assert_equal(loop(x), model(x))


def test_each_layer_has_its_own_initial_values_and_masks():
    pair = dropout_stack(2, 3, True)
    model, (x,) = pair.model_from(0), pair.arrays
    keys = jax.random.key_data(model.layers.dropout.rngs.key[...])
    params = pair.linen.init(jax.random.key(0), x, False)["params"]["layers"]
    for leaf in (model.layers.dense.kernel[...], keys, params["dense"]["kernel"]):
        assert len(np.unique(leaf, axis=0)) == 2
    assert model.layers.dropout.rngs.count[...].tolist() == [0] * 2
    model(x)
    assert model.layers.dropout.rngs.count[...].tolist() == [1] * 2


def test_the_stack_drops_at_the_rate_that_it_is_given():
    for rate in (0.25, 0.5):
        stack = nnx_side.DropoutStack(2, 3, rate, rngs=nnx.Rngs(0))
        assert stack.layers.dropout.rate == rate


def test_linen_masks_differ_by_layer():
    """With a zero kernel, a block adds its mask times the bias of the norm."""
    pair = dropout_stack(2, 3, True)
    zeros = jax.tree.map(jnp.zeros_like, pair.variables["params"]["layers"])
    norm = {"bias": jnp.stack([jnp.ones(3), jnp.full(3, 10.0)])}
    zeros["norm"] = {**zeros["norm"], **norm}
    output, _ = pair.linen.apply(
        {**pair.variables, "params": {"layers": zeros}},
        jnp.zeros((5, 3)),
        True,
        rngs={"dropout": jax.random.key(0)},
        mutable=["batch_stats"],
    )
    assert {*np.unique(output).tolist()} == {0.0, 2.0, 20.0, 22.0}


def remat_model(module, features):
    class Remat(nn.Module):
        @nn.compact
        def __call__(self, x):
            scan = nn.scan(
                lambda block, x, _: (block(x), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=module.num_layers,
            )
            x = nn.Dense(features, name="proj")(x)
            block = nn.remat(linen.Block, prevent_cse=False)
            return scan(block(features, name="layers"), x, None)[0]

    return Remat()


def call_with_remat(model, x):
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    @nnx.remat(prevent_cse=False)
    def forward(x, block):
        return block(x)

    return forward(model.proj(x), model.layers)


def test_scan_with_remat():
    pair = scanned(3, 2, 3)
    remat = replace(pair, linen=remat_model(pair.linen, 3), nnx_call=call_with_remat)
    parity.assert_parity(remat, jit=True)
    parity.assert_equal(
        pair.model(*pair.arrays), call_with_remat(pair.model, *pair.arrays)
    )


@pytest.mark.parametrize("side", ["linen", "nnx"])
def test_pitfall_layers_from_one_key_are_identical(side):
    """All layers start identical

    With `nnx.vmap(in_axes=None, axis_size=n)`, and in Linen with `split_rngs={"params":
    False}`, one key serves all layers: their kernels are the same, and nothing is
    raised on either side.
    """
    if side == "linen":
        kernel = kernels(2, 3, params=False)
    else:

        @nnx.vmap(in_axes=None, out_axes=0, axis_size=2)
        def create_layers(rngs):
            return nnx_side.Block(3, rngs=rngs)

        kernel = create_layers(nnx.Rngs(0)).dense.kernel[...]
    assert kernel.shape == (2, 3, 3)
    assert len(np.unique(kernel, axis=0)) == 1


def test_pitfall_a_stream_that_split_rngs_does_not_name():
    """`InvalidRngError: dense needs PRNG for "params"`

    Linen drops a stream that `split_rngs` does not name inside the scan. Without
    `params` there, `init` raises this. Without `dropout` only training raises it, for
    "dropout", and `init` and evaluation work.
    """
    with pytest.raises(flax.errors.InvalidRngError, match="dense needs PRNG for"):
        kernels(2, 3)


def test_pitfall_rngs_that_are_not_split_have_no_axis():
    """`ValueError: ... its rank should be at least 1, but is only 0`

    `nnx.vmap` with `in_axes=0` maps axis 0 of the key, which has none until
    `nnx.split_rngs` gives it one. Put `@nnx.split_rngs(splits=num_layers)` above
    `@nnx.vmap`.
    """

    @nnx.vmap(in_axes=0, out_axes=0)
    def create_layers(rngs):
        return nnx_side.Block(3, rngs=rngs)

    with pytest.raises(
        ValueError, match="its rank should be at least 1, but is only 0"
    ):
        create_layers(nnx.Rngs(0))


def test_pitfall_state_axes_are_of_graph_mode(nnx_mode):
    """``ValueError: `in_axes` cannot contain `StateAxes` ``

    In tree mode `nnx.StateAxes` is refused. In graph mode `nnx.StateAxes({...: 0})`
    computes what `0` does. Where all state of a block has the layer axis, as here,
    write `0`.
    """
    pair = scanned(3, 2, 3)
    model, (x,) = pair.model, pair.arrays
    axes = nnx.Carry, nnx.StateAxes({...: 0})

    def scan(forward):
        return nnx.scan(forward, in_axes=axes, out_axes=nnx.Carry)

    if nnx_mode == "graph":
        forward = scan(lambda x, block: block(x))
        np.testing.assert_array_equal(forward(model.proj(x), model.layers), model(x))
    else:
        with pytest.raises(ValueError, match="`in_axes` cannot contain `StateAxes`"):
            scan(lambda x, block: block(x))


def test_pitfall_the_stack_is_no_list():
    """`TypeError: 'Block' object is not iterable`

    `model.layers` is one block with stacked leaves, not a list. A loop over it raises
    this. Scan it, or make a list of it with `unstack_layers`.
    """
    pair = scanned(3, 2, 3)
    loop = NNXLoop(pair.model.proj, pair.model.layers)
    with pytest.raises(TypeError, match="'Block' object is not iterable"):
        loop(*pair.arrays)


def test_pitfall_the_carry_keeps_its_dtype():
    """`TypeError: ... carry input and carry output must have equal types`

    The block must return the dtype it takes. Behind a projection with
    `dtype=jnp.bfloat16`, blocks in float32 work in a loop, and a scan over them raises
    this. Give all layers one `dtype`, or cast what enters the scan.
    """
    pair = scanned(3, 2, 3)
    model, (x,) = pair.model, pair.arrays
    model.proj = nnx.Linear(3, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    loop = NNXLoop(model.proj, nnx_side.unstack_layers(model.layers))
    with jax.numpy_dtype_promotion("standard"):
        assert loop(x).dtype == jnp.float32
        with pytest.raises(TypeError, match="carry input and carry output must have"):
            model(x)


def test_pitfall_a_stack_of_another_depth_is_taken():
    """nnx: a stack of another depth is taken

    The depth is in the arrays alone. `nnx.update` of a stack of two layers with one of
    three gives a model of three. Linen compares the arrays with `length`, and raises
    `ValueError: scan got length argument of 2 which disagrees with leading axis sizes`.
    """
    pair, deeper = scanned(3, 2, 3), scanned(3, 3, 3)
    model, (x,) = pair.model, pair.arrays
    nnx.update(model, nnx.state(deeper.model))
    np.testing.assert_array_equal(model(x), deeper.model(x))
    with pytest.raises(ValueError, match="disagrees with leading axis sizes"):
        pair.linen.apply(deeper.variables, x)


def test_pitfall_layers_sorted_by_name_are_stacked_in_another_order():
    """Layers sorted by name are stacked in another order

    From 11 layers on, `sorted(params)` and the leaves of a dict put `layers_10` before
    `layers_2`. All layers have the same shapes, so nothing is raised. Stack by index.
    """
    params = {f"layers_{i}": jnp.float32(i) for i in range(12)}
    by_name = jnp.stack([params[name] for name in sorted(params)])
    assert by_name.tolist() == [0, 1, 10, 11, *range(2, 10)]
    assert linen.stack_layers(params)["layers"].tolist() == [*range(12)]


def test_pitfall_an_initializer_takes_the_layer_axis_for_fan_in():
    """An initializer takes the layer axis for fan-in

    `nnx.initializers.lecun_normal()` given the stacked shape, (16, 64, 64), draws
    kernels of a quarter of the deviation that 16 kernels of shape (64, 64) have.
    `nnx.vmap` over the constructor and `nn.scan` draw each layer by itself. For a
    stacked Param of your own, give the initializer `batch_axis=0`.
    """
    init, key = nnx.initializers.lecun_normal(), jax.random.key(0)
    layer, whole = init(key, (64, 64)), init(key, (16, 64, 64))
    np.testing.assert_allclose(np.std(layer), 1 / 8, rtol=0.03)  # of 4,096 draws
    np.testing.assert_allclose(np.std(whole), 1 / 32, rtol=0.01)  # of 65,536 draws
    whole = nnx.initializers.lecun_normal(batch_axis=0)(key, (16, 64, 64))
    np.testing.assert_allclose(np.std(whole), 1 / 8, rtol=0.01)


def equations(model, x):
    """Matrix products in the program of a call, each loop's body once."""
    graphdef, state = nnx.split(model)
    program = jax.make_jaxpr(lambda state: nnx.merge(graphdef, state)(x))(state)
    return str(program).count("dot_general")


def test_pitfall_a_loop_is_traced_once_per_layer():
    """A loop is traced once per layer

    The program of the scanned model holds the block once at any depth. That of a Python
    loop holds it once per layer, and is traced and compiled so.
    """
    for num_layers in (2, 12):
        pair = scanned(3, num_layers, 3)
        model, (x,) = pair.model, pair.arrays
        loop = NNXLoop(model.proj, nnx_side.unstack_layers(model.layers))
        assert equations(model, x) == 2  # that of the projection, that of the block
        assert equations(loop, x) == 1 + num_layers
