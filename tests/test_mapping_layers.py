"""Every layer that flax has on both sides: its leaves map, and it computes the same."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linen2nnx import mapping, parity
from linen2nnx.mapping import MappingError
from linen2nnx.parity import ParityError

CHECKS = ("structure", "outputs", "round trip")


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def rngs():
    return nnx.Rngs(0)


def decoding_attention():
    model = nnx.MultiHeadAttention(2, 6, decode=True, rngs=rngs())
    model.init_cache((2, 1, 6))
    return model


def nnx_rnn(cell=nnx.OptimizedLSTMCell):
    return nnx.RNN(cell(3, 4, rngs=rngs()))


X = normal(2, 3)
SEQUENCE = normal(2, 5, 3)
IMAGE = normal(2, 5, 5, 4)
STATE = normal(2, 4)

# Linen module, nnx model, inputs
LAYERS = {
    "Dense": (nn.Dense(4), lambda: nnx.Linear(3, 4, rngs=rngs()), X),
    "Dense without bias": (
        nn.Dense(4, use_bias=False),
        lambda: nnx.Linear(3, 4, use_bias=False, rngs=rngs()),
        X,
    ),
    "DenseGeneral": (
        nn.DenseGeneral((2, 4), axis=(1, 2)),
        lambda: nnx.LinearGeneral((5, 3), (2, 4), axis=(1, 2), rngs=rngs()),
        SEQUENCE,
    ),
    "DenseGeneral with a batch axis": (
        nn.DenseGeneral(4, batch_dims=(0,)),
        lambda: nnx.LinearGeneral(3, 4, batch_axis={0: 2}, rngs=rngs()),
        X,
    ),
    "Einsum": (
        nn.Einsum((3, 2, 4), "bi,iho->bho"),
        lambda: nnx.Einsum("bi,iho->bho", (3, 2, 4), (2, 4), rngs=rngs()),
        X,
    ),
    "Conv": (
        nn.Conv(6, (3, 2), feature_group_count=2),
        lambda: nnx.Conv(4, 6, (3, 2), feature_group_count=2, rngs=rngs()),
        IMAGE,
    ),
    "ConvTranspose": (
        nn.ConvTranspose(6, (3, 2), strides=(2, 2)),
        lambda: nnx.ConvTranspose(4, 6, (3, 2), strides=(2, 2), rngs=rngs()),
        IMAGE,
    ),
    "ConvTranspose with its kernel transposed": (
        nn.ConvTranspose(6, (3, 2), transpose_kernel=True),
        lambda: nnx.ConvTranspose(4, 6, (3, 2), transpose_kernel=True, rngs=rngs()),
        IMAGE,
    ),
    "Embed": (
        nn.Embed(7, 4),
        lambda: nnx.Embed(7, 4, rngs=rngs()),
        np.array([[6, 0, 3], [1, 2, 2]]),
    ),
    "BatchNorm in training": (
        nn.BatchNorm(use_running_average=False),
        lambda: nnx.BatchNorm(3, rngs=rngs()),
        X,
    ),
    "BatchNorm in evaluation": (
        nn.BatchNorm(use_running_average=True),
        lambda: nnx.BatchNorm(3, use_running_average=True, rngs=rngs()),
        X,
    ),
    "LayerNorm": (nn.LayerNorm(), lambda: nnx.LayerNorm(3, rngs=rngs()), X),
    "RMSNorm": (nn.RMSNorm(), lambda: nnx.RMSNorm(3, rngs=rngs()), X),
    "GroupNorm": (
        nn.GroupNorm(num_groups=2),
        lambda: nnx.GroupNorm(4, num_groups=2, rngs=rngs()),
        IMAGE,
    ),
    "InstanceNorm": (
        nn.InstanceNorm(),
        lambda: nnx.InstanceNorm(4, rngs=rngs()),
        IMAGE,
    ),
    "WeightNorm": (
        nn.WeightNorm(nn.Dense(4)),
        lambda: nnx.WeightNorm(nnx.Linear(3, 4, rngs=rngs()), rngs=rngs()),
        X,
    ),
    "MultiHeadDotProductAttention": (
        nn.MultiHeadDotProductAttention(2, qkv_features=4, normalize_qk=True),
        lambda: nnx.MultiHeadAttention(
            2, 3, qkv_features=4, normalize_qk=True, decode=False, rngs=rngs()
        ),
        SEQUENCE,
    ),
    "MultiHeadDotProductAttention in decoding": (
        nn.MultiHeadDotProductAttention(2, decode=True),
        decoding_attention,
        normal(2, 1, 6),
    ),
    "PReLU": (nn.PReLU(), nnx.PReLU, X),
    "LSTMCell": (
        nn.LSTMCell(4),
        lambda: nnx.LSTMCell(3, 4, rngs=rngs()),
        (STATE, -STATE),
        X,
    ),
    "OptimizedLSTMCell": (
        nn.OptimizedLSTMCell(4),
        lambda: nnx.OptimizedLSTMCell(3, 4, rngs=rngs()),
        (STATE, -STATE),
        X,
    ),
    "SimpleCell": (
        nn.SimpleCell(4),
        lambda: nnx.SimpleCell(3, 4, rngs=rngs()),
        STATE,
        X,
    ),
    "RNN": (nn.RNN(nn.OptimizedLSTMCell(4)), nnx_rnn, SEQUENCE),
    "Bidirectional": (
        nn.Bidirectional(nn.RNN(nn.SimpleCell(4)), nn.RNN(nn.OptimizedLSTMCell(4))),
        lambda: nnx.Bidirectional(nnx_rnn(nnx.SimpleCell), nnx_rnn()),
        SEQUENCE,
    ),
    "Dropout": (
        nn.Dropout(0.5, deterministic=True),
        lambda: nnx.Dropout(0.5, deterministic=True, rngs=rngs()),
        X,
    ),
    "Sequential": (
        nn.Sequential([nn.Dense(4), nn.relu, nn.Sequential([nn.Dense(2)])]),
        lambda: nnx.Sequential(
            nnx.Linear(3, 4, rngs=rngs()),
            nnx.relu,
            nnx.Sequential(nnx.Linear(4, 2, rngs=rngs())),
        ),
        X,
    ),
}


ONE_PRODUCT = parity.Tolerance("nnx multiplies by all gates at once", atol=1e-6)
TOLERANCES = {
    "MultiHeadDotProductAttention": {
        "outputs": parity.Tolerance(
            "nnx calls jax.nn.dot_product_attention, Linen its own einsums", atol=5e-6
        )
    },
}


def pair(module, create_model, *inputs, rename=None, **kwargs):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **kwargs))
    model = nnx.eval_shape(create_model)
    if any(isinstance(node, nnx.WeightNorm) for _, node in nnx.iter_graph(model)):
        model = create_model()  # an abstract one loses its scales up to flax 0.12.8
    return parity.random_pair(shapes, model, rename=rename)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_needs_no_rename_and_computes_the_same(layer, nnx_mode):
    module, create_model, *inputs = LAYERS[layer]
    variables, model = pair(module, create_model, *inputs)
    tolerance = TOLERANCES.get(layer)
    parity.assert_parity(
        module, variables, model, *inputs, checks=CHECKS, tolerance=tolerance
    )
    state = nnx.state(model)
    for source in (model, state):
        parity.assert_equal(variables, mapping.to_linen(source, variables))
    assert mapping.table(variables, model) == mapping.table(variables, state)


def test_every_layer_that_both_sides_have_is_here():
    """A layer that flax adds on both sides asks for a line in the table above."""
    elsewhere = {"GRUCell", "SpectralNorm"}
    not_layers = {"Module", "Variable", "RNNCellBase"}
    classes = {
        name
        for name in set(dir(nn)) & set(dir(nnx))
        if isinstance(getattr(nn, name), type) and isinstance(getattr(nnx, name), type)
    }
    tested = {type(module).__name__ for module, *_ in LAYERS.values()}
    assert classes - not_layers - {"MultiHeadAttention"} == tested & classes | elsewhere


class LinenStack(nn.Module):
    @nn.compact
    def __call__(self, x):
        def layer(cell, x, _):
            return cell((x, -x), x)[1], None

        stack = nn.scan(
            layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return stack(nn.OptimizedLSTMCell(3, name="cells"), x, None)[0]


class NNXStack(nnx.Module):
    def __init__(self):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(axis_size=3)
        def stack(rngs):
            return nnx.OptimizedLSTMCell(3, 3, rngs=rngs)

        self.cells = stack(rngs())

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def layers(cell, x):
            return cell((x, -x), x)[1]

        return layers(self.cells, x)


def test_a_scanned_stack(nnx_mode):
    variables, model = pair(LinenStack(), NNXStack, X)
    assert variables["params"]["cells"]["ii"]["kernel"].shape == (3, 3, 3)
    parity.assert_parity(LinenStack(), variables, model, X, checks=CHECKS)


class NNXEnsemble(nnx.Module):
    def __init__(self):
        @nnx.split_rngs(splits=5)
        @nnx.vmap(axis_size=5)
        def members(rngs):
            return nnx.Linear(3, 4, rngs=rngs)

        self.members = members(rngs())

    def __call__(self, x):
        return nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(self.members, x)


class LinenEnsemble(nn.Module):
    @nn.compact
    def __call__(self, x):
        members = nn.vmap(
            nn.Dense,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=5,
        )
        return members(4, name="members")(x)


def test_a_vmapped_ensemble(nnx_mode):
    variables, model = pair(LinenEnsemble(), NNXEnsemble, X)
    parity.assert_parity(LinenEnsemble(), variables, model, X, checks=CHECKS)


class LinenSpectralNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.SpectralNorm(nn.Dense(4))(x, update_stats=True)


class NNXSpectralNorm(nnx.Module):
    def __init__(self):
        layer = nnx.Linear(3, 4, rngs=rngs())
        self.norm = nnx.SpectralNorm(layer, rngs=rngs())

    def __call__(self, x):
        return self.norm(x, update_stats=True)


def test_spectral_norm_in_a_compact_method(nnx_mode):
    """Linen keeps the layer beside the norm, and its statistics by the layer's name."""
    rename = {"SpectralNorm_0": "norm", "Dense_0": "norm/layer_instance"}
    module = LinenSpectralNorm()
    variables, model = pair(module, NNXSpectralNorm, X, rename=rename)
    assert "Dense_0/kernel/u" in variables["batch_stats"]["SpectralNorm_0"]
    parity.assert_parity(module, variables, model, X, checks=CHECKS, rename=rename)


def test_spectral_norm_of_a_convolution():
    module = nn.SpectralNorm(nn.Conv(4, (3,)))

    def create_model():
        layer = nnx.Conv(3, 4, (3,), rngs=rngs())
        return nnx.SpectralNorm(layer, rngs=rngs())

    variables, model = pair(module, create_model, SEQUENCE, update_stats=True)
    assert "layer_instance/kernel/u" in variables["batch_stats"]
    parity.assert_parity(
        lambda variables, x: module.apply(variables, x, update_stats=False),
        variables,
        model,
        SEQUENCE,
        call=lambda model, x: model(x, update_stats=False),
        checks=CHECKS,
    )


@pytest.mark.parametrize(
    ("norm", "kwargs"), [("SpectralNorm", {"update_stats": True}), ("WeightNorm", {})]
)
def test_nnx_writes_the_normalised_kernel_back(norm, kwargs):
    """Linen normalises a copy; the parameters themselves stay as they are."""

    def create_model():
        return getattr(nnx, norm)(nnx.Linear(3, 4, rngs=rngs()), rngs=rngs())

    _, model = pair(getattr(nn, norm)(nn.Dense(4)), create_model, X, **kwargs)
    before = np.asarray(model.layer_instance.kernel[...])
    model(X)
    assert not np.array_equal(before, model.layer_instance.kernel[...])


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="second")(nn.Dense(4, name="first")(x))


class NNXBlock(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(3, 4, rngs=rngs())
        self.second = nnx.Linear(4, 4, rngs=rngs())

    def __call__(self, x):
        return self.second(self.first(x))


class LinenWeightNorms(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.WeightNorm(nn.Dense(3), name="inner")(x)
        return nn.WeightNorm(LinenBlock())(x)


class NNXWeightNorms(nnx.Module):
    def __init__(self):
        self.inner = nnx.WeightNorm(nnx.Linear(3, 3, rngs=rngs()), rngs=rngs())
        self.outer = nnx.WeightNorm(NNXBlock(), rngs=rngs())

    def __call__(self, x):
        return self.outer(self.inner(x))


def test_weight_norm_in_a_compact_method(nnx_mode):
    """The rename lines of the error are ready to paste, and right."""
    module = LinenWeightNorms()
    with pytest.raises(MappingError) as error:
        pair(module, NNXWeightNorms, X)
    pasted = eval(str(error.value).split("rename=")[1])
    named = {
        "Dense_0": "inner/layer_instance",
        "LinenBlock_0": "outer/layer_instance",
        "WeightNorm_0": "outer",
    }
    for rename in (pasted, named):
        variables, model = pair(module, NNXWeightNorms, X, rename=rename)
        parity.assert_parity(module, variables, model, X, checks=CHECKS, rename=rename)


def gru(**kwargs):
    return nnx.eval_shape(lambda: nnx.GRUCell(3, 4, rngs=rngs(), **kwargs))


def gru_variables():
    shapes = jax.eval_shape(nn.GRUCell(4).init, jax.random.key(0), STATE, X)
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.map(lambda leaf: draw(leaf.shape).astype(leaf.dtype), shapes)


@pytest.mark.parametrize("kind", [lambda model: model, nnx.state])
def test_pitfall_nnx_has_no_place_for_a_recurrent_bias_of_gru(kind):
    with pytest.raises(MappingError) as error:
        mapping.to_nnx(gru_variables(), kind(gru()))
    message = str(error.value)
    assert "flax#5594" in message
    assert 'params/hn/bias (4,) float32  "hn/bias": "hn_bias"' in message
    assert "no nnx leaf takes" not in message
    assert "perhaps" not in message


def test_the_recurrent_bias_of_gru_is_named_below_other_modules():
    variables = {"params": {"GRUCell_0": gru_variables()["params"]}}
    model = nnx.Dict(rnn=nnx.RNN(gru()))
    with pytest.raises(MappingError, match='"GRUCell_0/hn/bias": "rnn/cell/hn_bias"'):
        mapping.table(variables, model, rename={"GRUCell_0": "rnn/cell"})


def test_another_bias_of_a_gru_is_one_leaf_too_many():
    variables = gru_variables()
    variables["params"]["hr"]["bias"] = variables["params"]["hn"].pop("bias")
    with pytest.raises(MappingError, match=r"no nnx leaf takes:\n    params/hr/bias"):
        mapping.table(variables, gru())


def test_a_gru_without_its_recurrent_bias_is_the_same_if_that_is_zero():
    variables = gru_variables()
    variables["params"]["hn"]["bias"] *= 0
    without = jax.tree.map(lambda leaf: leaf, variables)
    del without["params"]["hn"]["bias"]
    model = mapping.to_nnx(without, gru())
    parity.assert_equal(without, mapping.to_linen(model, without))

    def assert_equal_outputs():
        linen = nn.GRUCell(4).apply(variables, STATE, X)
        parity.assert_equal(linen, model(STATE, X), tolerance=ONE_PRODUCT)

    assert_equal_outputs()
    variables["params"]["hn"]["bias"] += 1
    with pytest.raises(ParityError):
        assert_equal_outputs()


class GRUCell(nnx.GRUCell):
    """What the error message advises."""

    def __init__(self, din, hidden, *, rngs):
        super().__init__(din, hidden, rngs=rngs)
        self.hn_bias = nnx.Param(jnp.zeros(hidden))

    def __call__(self, carry, x):
        xr, xz, xn = jnp.split(self.dense_i(x), 3, axis=-1)
        hr, hz, hn = jnp.split(self.dense_h(carry), 3, axis=-1)
        r, z = nnx.sigmoid(xr + hr), nnx.sigmoid(xz + hz)
        n = nnx.tanh(xn + r * (hn + self.hn_bias))
        carry = (1.0 - z) * n + z * carry
        return carry, carry


def test_a_gru_with_a_recurrent_bias(nnx_mode):
    module, rename = nn.GRUCell(4), {"hn/bias": "hn_bias"}
    variables, model = pair(
        module, lambda: GRUCell(3, 4, rngs=rngs()), STATE, X, rename=rename
    )
    parity.assert_parity(
        module,
        variables,
        model,
        STATE,
        X,
        checks=CHECKS,
        rename=rename,
        tolerance={"outputs": ONE_PRODUCT},
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_pitfall_norms_in_bfloat16(dtype):
    """nnx casts to bfloat16 before the statistics, Linen after them."""
    module = nn.LayerNorm(dtype=jnp.bfloat16)
    variables, model = pair(
        module, lambda: nnx.LayerNorm(3, dtype=dtype, rngs=rngs()), X
    )
    linen, ours = module.apply(variables, X), model(X).astype(jnp.bfloat16)
    assert np.array_equal(linen, ours) == (dtype == jnp.float32)
