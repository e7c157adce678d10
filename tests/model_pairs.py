"""Linen models and their ports to nnx, tiny, for the tests of parity."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from linen2nnx import parity


@dataclass(frozen=True)
class Pair:
    """A Linen model, its port, and what both are called with."""

    linen: nn.Module
    create: Callable[[nnx.Rngs], nnx.Module]
    inputs: tuple[Any, ...]
    rename: dict[str, str] = field(default_factory=dict)
    train: bool | None = None  # None: the model has no modes

    @property
    def linen_kwargs(self):
        return {} if self.train is None else {"train": self.train}

    @functools.cached_property
    def values(self):
        """Random variables and a model that holds them, in its mode."""
        shapes = jax.eval_shape(
            lambda key: self.linen.init(key, *self.inputs, **self.linen_kwargs),
            jax.random.key(0),
        )
        model = nnx.eval_shape(lambda: self.create(nnx.Rngs(0)))
        variables, model = parity.random_pair(shapes, model, rename=self.rename)
        if self.train is False:
            model.eval()
        return variables, model

    def compare(self, plant=None, **keywords):
        """The report of a comparison, with an error planted in the port."""
        variables, model = self.values
        if plant is not None:
            model = nnx.clone(model)
            plant(model)
        return parity.compare(
            self.linen,
            variables,
            model,
            *self.inputs,
            rename=self.rename,
            linen_kwargs=self.linen_kwargs,
            **keywords,
        )


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class LinenMLP(nn.Module):
    """Its outer layer is made first, so that it is Dense_0."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(8)(x)))


class MLP(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, mask, train):
        dropout = nn.Dropout(0.5, deterministic=not train)
        y = nn.LayerNorm(name="norm1")(x)
        attention = nn.MultiHeadAttention(
            num_heads=2, dropout_rate=0.5, deterministic=not train, name="attention"
        )
        x = x + dropout(attention(y, mask=mask))
        y = nn.LayerNorm(name="norm2")(x)
        y = nn.Dense(8, name="down")(nn.gelu(nn.Dense(16, name="up")(y)))
        return x + dropout(y)


class LinenTransformer(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, ids, train):
        embed = nn.Embed(11, 8, name="embed")
        positions = self.param("positions", nn.initializers.normal(1.0), (9, 8))
        x = embed(ids) + positions[: ids.shape[1]]
        mask = nn.make_attention_mask(ids > 1, ids > 1)
        for i in range(self.depth):
            x = LinenBlock(name=f"blocks_{i}")(x, mask, train)
        return embed.attend(nn.LayerNorm(name="norm")(x))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads=2, in_features=8, dropout_rate=0.5, decode=False, rngs=rngs
        )
        self.norm2 = nnx.LayerNorm(8, rngs=rngs)
        self.up = nnx.Linear(8, 16, rngs=rngs)
        self.down = nnx.Linear(16, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, mask):
        x = x + self.dropout(self.attention(self.norm1(x), mask=mask))
        return x + self.dropout(self.mlp(self.norm2(x)))

    def mlp(self, x):
        return self.down(nnx.gelu(self.up(x)))


class Transformer(nnx.Module):
    def __init__(self, rngs, depth):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (9, 8)))
        self.blocks = nnx.List(Block(rngs) for _ in range(depth))
        self.norm = nnx.LayerNorm(8, rngs=rngs)

    def __call__(self, ids):
        x = self.embed(ids) + self.positions[: ids.shape[1]]
        mask = nnx.make_attention_mask(ids > 1, ids > 1)
        for block in self.blocks:
            x = block(x, mask)
        return self.embed.attend(self.norm(x))


class LinenResidual(nn.Module):
    features: int
    strides: int

    @nn.compact
    def __call__(self, x, train):
        def norm(name):
            return nn.BatchNorm(not train, momentum=0.9, name=name)

        conv = functools.partial(nn.Conv, self.features, (3, 3), use_bias=False)
        y = nn.relu(norm("bn1")(conv(strides=self.strides, name="conv1")(x)))
        y = norm("bn2")(conv(name="conv2")(y))
        if x.shape != y.shape:
            x = nn.Conv(
                self.features, (1, 1), self.strides, use_bias=False, name="shortcut"
            )(x)
        return nn.relu(x + y)


class LinenResNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), name="stem")(x)
        for i, (features, strides) in enumerate([(4, 1), (8, 2)]):
            x = LinenResidual(features, strides, name=f"blocks_{i}")(x, train)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class Residual(nnx.Module):
    def __init__(self, din, features, strides, rngs):
        conv = functools.partial(nnx.Conv, use_bias=False, rngs=rngs)
        norm = functools.partial(nnx.BatchNorm, features, momentum=0.9, rngs=rngs)
        self.conv1 = conv(din, features, (3, 3), strides)
        self.bn1 = norm()
        self.conv2 = conv(features, features, (3, 3))
        self.bn2 = norm()
        if din != features:
            self.shortcut = conv(din, features, (1, 1), strides)

    def __call__(self, x):
        y = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))
        return nnx.relu(self.skip(x) + y)

    def skip(self, x):
        return self.shortcut(x) if hasattr(self, "shortcut") else x


class ResNet(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.blocks = nnx.List([Residual(4, 4, 1, rngs), Residual(4, 8, 2, rngs)])
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class LinenCNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Conv(6, (2, 2), padding="VALID")(x))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(4, 6, (2, 2), padding="VALID", rngs=rngs)
        self.out = nnx.Linear(24, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.conv1(x)), (2, 2), (2, 2))
        x = nnx.relu(self.conv2(x))
        return self.out(x.reshape(x.shape[0], -1))


class LinenLSTM(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.LSTMCell(8))(x)
        return nn.Dense(3)(x[:, -1])


class LSTM(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.LSTMCell(4, 8, rngs=rngs))
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.rnn(x)[:, -1])


class LinenAutoencoder(nn.Module):
    def setup(self):
        self.encoder = [nn.Dense(8), nn.Dense(4)]
        self.decoder = [nn.Dense(8), nn.Dense(4)]

    def encode(self, x):
        return self.encoder[1](nn.tanh(self.encoder[0](x)))

    def decode(self, z):
        return nn.sigmoid(self.decoder[1](nn.tanh(self.decoder[0](z))))

    def __call__(self, x):
        return self.decode(self.encode(x))


class Autoencoder(nnx.Module):
    def __init__(self, rngs):
        self.encoder = nnx.List(
            [nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)]
        )
        self.decoder = nnx.List(
            [nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)]
        )

    def encode(self, x):
        return self.encoder[1](nnx.tanh(self.encoder[0](x)))

    def decode(self, z):
        return nnx.sigmoid(self.decoder[1](nnx.tanh(self.decoder[0](z))))

    def __call__(self, x):
        return self.decode(self.encode(x))


class LinenGroupNormNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), 2, name="down")(x)
        x = nn.silu(nn.GroupNorm(4, name="norm1")(x))
        x = nn.ConvTranspose(4, (3, 3), (2, 2), name="up")(x)
        x = nn.silu(nn.GroupNorm(2, name="norm2")(x))
        return nn.Conv(3, (1, 1), name="out")(x)


class GroupNormNet(nnx.Module):
    def __init__(self, rngs):
        self.down = nnx.Conv(3, 8, (3, 3), 2, rngs=rngs)
        self.norm1 = nnx.GroupNorm(8, 4, rngs=rngs)
        self.up = nnx.ConvTranspose(8, 4, (3, 3), (2, 2), rngs=rngs)
        self.norm2 = nnx.GroupNorm(4, 2, rngs=rngs)
        self.out = nnx.Conv(4, 3, (1, 1), rngs=rngs)

    def __call__(self, x):
        x = nnx.silu(self.norm1(self.down(x)))
        x = nnx.silu(self.norm2(self.up(x)))
        return self.out(x)


class LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.tanh(nn.Dense(8, name="dense")(x)), None


class LinenScan(nn.Module):
    @nn.compact
    def __call__(self, x):
        scan = nn.scan(
            LinenLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = scan(name="layers")(nn.Dense(8, name="stem")(x))
        return nn.Dense(3, name="head")(x)


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        return nnx.tanh(self.dense(x))


class Scan(nnx.Module):
    reverse = False

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def create(rngs):
            return Layer(rngs)

        self.stem = nnx.Linear(4, 8, rngs=rngs)
        self.layers = create(rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry, reverse=self.reverse)
        def forward(x, layer):
            return layer(x)

        return self.head(forward(self.stem(x), self.layers))


class LinenMixer(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x).swapaxes(1, 2)
        y = nn.Dense(8, name="tokens_out")(nn.gelu(nn.Dense(16, name="tokens")(y)))
        x = x + y.swapaxes(1, 2)
        y = nn.LayerNorm()(x)
        y = nn.Dense(8, name="channels_out")(nn.gelu(nn.Dense(16, name="channels")(y)))
        return nn.Dense(3, name="head")((x + y).mean(1))


class Mixer(nnx.Module):
    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(8, rngs=rngs)
        self.tokens = nnx.Linear(8, 16, rngs=rngs)
        self.tokens_out = nnx.Linear(16, 8, rngs=rngs)
        self.norm2 = nnx.LayerNorm(8, rngs=rngs)
        self.channels = nnx.Linear(8, 16, rngs=rngs)
        self.channels_out = nnx.Linear(16, 8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        y = self.norm1(x).swapaxes(1, 2)
        y = self.tokens_out(nnx.gelu(self.tokens(y)))
        x = x + y.swapaxes(1, 2)
        y = self.channels_out(nnx.gelu(self.channels(self.norm2(x))))
        return self.head((x + y).mean(1))


class LinenSiamese(nn.Module):
    @nn.compact
    def __call__(self, pictures):
        encoder = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(8)])
        left, right = encoder(pictures["left"]), encoder(pictures["right"])
        return nn.Dense(1)(jnp.abs(left - right))


class Siamese(nnx.Module):
    def __init__(self, rngs):
        self.encoder = nnx.Sequential(
            nnx.Linear(4, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 8, rngs=rngs)
        )
        self.out = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, pictures):
        left = self.encoder(pictures["left"])
        return self.out(jnp.abs(left - self.encoder(pictures["right"])))


class LinenGLU(nn.Module):
    """Its dropout takes a key at the call: the same mask on both sides."""

    @nn.compact
    def __call__(self, x, key):
        dense = functools.partial(nn.Dense, use_bias=False)
        y = nn.RMSNorm(name="norm")(x)
        y = nn.silu(dense(16, name="gate")(y)) * dense(16, name="up")(y)
        y = nn.Dropout(0.5, deterministic=False)(y, rng=key)
        return x + dense(8, name="down")(y)


class GLU(nnx.Module):
    def __init__(self, rngs):
        dense = functools.partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.norm = nnx.RMSNorm(8, rngs=rngs)
        self.gate, self.up, self.down = dense(8, 16), dense(8, 16), dense(16, 8)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, key):
        y = self.norm(x)
        y = nnx.silu(self.gate(y)) * self.up(y)
        return x + self.down(self.dropout(y, rngs=key))


IDS = np.random.default_rng(0).integers(0, 11, (2, 8)).astype(np.int32)
IDS[:, 0] = 5  # a row of padding only has no attention to compare


def transformer(depth):
    create = functools.partial(Transformer, depth=depth)
    return Pair(LinenTransformer(depth), create, (IDS,), train=False)


PAIRS = {
    "mlp": Pair(
        LinenMLP(), MLP, (floats(2, 4),), {"Dense_0": "out", "Dense_1": "hidden"}
    ),
    "transformer": transformer(2),
    "deep transformer": transformer(12),
    "resnet": Pair(LinenResNet(), ResNet, (floats(2, 6, 6, 3),), train=True),
    "cnn": Pair(
        LinenCNN(),
        CNN,
        (floats(2, 6, 6, 3),),
        {"Conv_0": "conv1", "Conv_1": "conv2", "Dense_0": "out"},
    ),
    "lstm": Pair(
        LinenLSTM(),
        LSTM,
        (floats(2, 5, 4),),
        {"LSTMCell_0": "rnn/cell", "Dense_0": "out"},
    ),
    "autoencoder": Pair(LinenAutoencoder(), Autoencoder, (floats(2, 4),)),
    "group norm": Pair(LinenGroupNormNet(), GroupNormNet, (floats(2, 6, 6, 3),)),
    "scan": Pair(LinenScan(), Scan, (floats(2, 4),)),
    "mixer": Pair(
        LinenMixer(),
        Mixer,
        (floats(2, 8, 8),),
        {"LayerNorm_0": "norm1", "LayerNorm_1": "norm2"},
    ),
    "siamese": Pair(
        LinenSiamese(),
        Siamese,
        ({"left": floats(2, 4), "right": floats(2, 4, seed=1)},),
        {
            "Dense_0": "encoder/layers/0",
            "Dense_1": "encoder/layers/2",
            "Dense_2": "out",
        },
    ),
    "glu": Pair(LinenGLU(), GLU, (floats(2, 8), jax.random.key(3))),
}
