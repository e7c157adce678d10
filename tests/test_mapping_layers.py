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


def nnx_stack():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(axis_size=3)
    def stack(rngs):
        return nnx.Linear(3, 3, rngs=rngs)

    return stack(rngs())


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
    "InstanceNorm": (nn.InstanceNorm(), lambda: nnx.InstanceNorm(4, rngs=rngs()), IMAGE),
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


def pair(module, create_model, *inputs, rename=None):
    """A real model: an abstract WeightNorm loses its scales up to flax 0.12.8."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return parity.random_pair(shapes, create_model(), rename=rename)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_needs_no_rename_and_computes_the_same(layer, nnx_mode):
    module, create_model, *inputs = LAYERS[layer]
    variables, model = pair(module, create_model, *inputs)
    parity.assert_parity(module, variables, model, *inputs, checks=CHECKS)
    for model_or_state in (model, nnx.state(model)):
        back = mapping.to_linen(model_or_state, variables)
        parity.assert_equal(variables, back)
