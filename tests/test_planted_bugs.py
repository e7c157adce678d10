"""Bugs planted in the ports: each is found, by the right check and module.

A line of the table is one bug: its name, the pair, how it is planted in the nnx model,
the check that finds it, and where the forward passes first differ: the Linen module,
the nnx module (`-` where it is not called, `.` the model itself), and whether its
output differs or its input already does. A bug that changes no forward pass has none.
"""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from linen2nnx import parity
from linen2nnx.parity import comparison, divergence
from tests.model_pairs import PAIRS


def as_called(module, call, method="__call__"):
    """Let one module of a model do something else."""
    kind = type(module)
    changed = type(kind.__name__, (kind,), {method: call})
    object.__setattr__(module, "__class__", changed)


def setting(path, **settings):
    def plant(model):
        for name, value in settings.items():
            setattr(at(model, path), name, value)

    return plant


def calling(path, call, method="__call__"):
    return lambda model: as_called(at(model, path), call, method)


def at(model, path):
    for part in path.split("/") if path else ():
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model


def swap(first, second, name="kernel"):
    def plant(model):
        a, b = at(model, first), at(model, second)
        one, other = getattr(a, name), getattr(b, name)
        setattr(a, name, other)
        setattr(b, name, one)

    return plant


def kernel(path, change):
    def plant(model):
        module = at(model, path)
        module.kernel = nnx.Param(change(module.kernel[...]))

    return plant


@dataclasses.dataclass
class Bug:
    name: str
    pair: str
    plant: Callable[[nnx.Module], None]
    check: str = "outputs"
    linen: str | None = None
    nnx: str | None = None
    where: str = "output"
    hint: str = ""


def mlp_call(activation=nnx.relu, after=lambda x: x):
    return lambda self, x: self.out(after(activation(self.hidden(x))))


def without_bias(self, x):
    return x @ self.kernel[...]


def block_call(attention=None, first=None, second=None):
    attention = attention or (lambda self, y, mask: self.attention(y, mask=mask))
    add = lambda x, y: x + y  # noqa: E731
    first, second = first or add, second or add

    def call(self, x, mask):
        x = first(x, self.dropout(attention(self, self.norm1(x), mask)))
        return second(x, self.dropout(self.mlp(self.norm2(x))))

    return call


def encoder_call(
    embed=lambda self, ids: self.embed(ids),
    positions=lambda p: p,
    mask=lambda ids: nnx.make_attention_mask(ids > 1, ids > 1),
    blocks=lambda blocks: blocks,
    norm=lambda self, x: self.norm(x),
    head=lambda self, x: self.embed.attend(x),
):
    def call(self, ids):
        x = embed(self, ids) + positions(self.positions[...])[: ids.shape[1]]
        for block in blocks(list(self.blocks)):
            x = block(x, mask(ids))
        return head(self, norm(self, x))

    return call


def wrong_heads(query, key, value, **keywords):
    def split(x):
        return x.reshape(*x.shape[:-2], 4, 2).swapaxes(-1, -2)

    return nnx.dot_product_attention(split(query), split(key), split(value), **keywords)


def residual_call(order=("bn1", "bn2"), act=nnx.relu, add=jnp.add):
    def call(self, x):
        first, second = (getattr(self, name) for name in order)
        y = second(self.conv2(act(first(self.conv1(x)))))
        return nnx.relu(add(self.skip(x), y))

    return call


def resnet_call(pool):
    def call(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(pool(x))

    return call


def cnn_call(pool=nnx.max_pool, flat=lambda x: x, start=lambda x: x):
    def call(self, x):
        x = pool(nnx.relu(self.conv1(start(x))), (2, 2), (2, 2))
        x = flat(nnx.relu(self.conv2(x)))
        return self.out(x.reshape(x.shape[0], -1))

    return call


def group_norm_call(self, x):
    x = nnx.relu(self.norm1(self.down(x)))
    return self.out(nnx.silu(self.norm2(self.up(x))))


def mixer_call(tokens_first=True, residual=True, axis=1):
    def call(self, x):
        y = self.norm1(x).swapaxes(1, 2)
        tokens, channels = self.tokens, self.channels
        if not tokens_first:
            tokens, channels = channels, tokens
        y = self.tokens_out(nnx.gelu(tokens(y))).swapaxes(1, 2)
        x = x + y if residual else y
        y = self.channels_out(nnx.gelu(channels(self.norm2(x))))
        return self.head((x + y).mean(axis))

    return call


def siamese_call(combine, right="right"):
    def call(self, pictures):
        left = self.encoder(pictures["left"])
        return self.out(combine(left, self.encoder(pictures[right])))

    return call


def glu_call(gate="gate", up="up", key=lambda k: k, gated=lambda y: y):
    def call(self, x, random_key):
        y = self.norm(x)
        y = nnx.silu(getattr(self, gate)(y)) * gated(getattr(self, up)(y))
        return x + self.down(self.dropout(y, rngs=key(random_key)))

    return call


def stopped(x):
    return jax.lax.stop_gradient(x)


BUGS = [
    # the values
    Bug(
        "kernels swapped",
        "deep transformer",
        swap("blocks/3/up", "blocks/4/up"),
        "structure",
    ),
    Bug("kernel flipped", "cnn", kernel("conv1", lambda k: k[::-1]), "structure"),
    Bug("kernel transposed", "mixer", kernel("tokens_out", jnp.transpose), "structure"),
    Bug("gates swapped", "lstm", swap("rnn/cell/hf", "rnn/cell/hg"), "structure"),
    Bug("bias dropped", "mlp", setting("out", bias=None), "structure"),
    Bug(
        "statistics not loaded",
        "resnet",
        lambda model: model.blocks[1].bn1.mean.set_value(jnp.zeros(8)),
        "structure",
    ),
    # the code of one module
    Bug(
        "bias not added",
        "mlp",
        calling("out", without_bias),
        linen="Dense_0",
        nnx="out",
    ),
    Bug(
        "computes in bfloat16",
        "mlp",
        setting("hidden", dtype=jnp.bfloat16),
        linen="Dense_1",
        nnx="hidden",
        hint="dtype is None in Linen and bfloat16 in nnx",
    ),
    Bug(
        "epsilon of a layer norm",
        "transformer",
        setting("blocks/0/norm1", epsilon=1e-5),
        linen="blocks_0/norm1",
        nnx="blocks/0/norm1",
        hint="epsilon is 1e-06 in Linen and 1e-05 in nnx",
    ),
    Bug(
        "epsilon of the last layer norm",  # random values grow too little to hide it
        "deep transformer",
        setting("blocks/11/norm2", epsilon=1e-5),
        linen="blocks_11/norm2",
        nnx="blocks/11/norm2",
        hint="epsilon is 1e-06 in Linen and 1e-05 in nnx",
    ),
    Bug(
        "epsilon of a batch norm",
        "resnet",
        setting("blocks/1/bn2", epsilon=1e-3),
        linen="blocks_1/bn2",
        nnx="blocks/1/bn2",
        hint="epsilon is 1e-05 in Linen and 0.001 in nnx",
    ),
    Bug(
        "epsilon of an RMS norm",
        "glu",
        setting("norm", epsilon=1e-5),
        linen="norm",
        nnx="norm",
        hint="epsilon is",
    ),
    Bug(
        "statistics used in training",
        "resnet",
        setting("blocks/0/bn1", use_running_average=True),
        linen="blocks_0/bn1",
        nnx="blocks/0/bn1",
        hint="use_running_average is False in Linen and True in nnx",
    ),
    Bug(
        "padding of a convolution",
        "resnet",
        setting("blocks/0/conv2", padding="CIRCULAR"),
        linen="blocks_0/conv2",
        nnx="blocks/0/conv2",
        hint="padding is SAME in Linen and CIRCULAR in nnx",
    ),
    Bug(
        "number of groups",
        "group norm",
        setting("norm1", num_groups=2, group_size=4),
        linen="norm1",
        nnx="norm1",
        hint="num_groups is 4 in Linen and 2 in nnx",
    ),
    Bug(
        "transposed convolution is flipped",
        "group norm",
        lambda model: as_called(
            model.up, lambda self, x: nnx.ConvTranspose.__call__(self, x)[:, ::-1]
        ),
        linen="up",
        nnx="up",
    ),
    Bug(
        "gate of an LSTM",
        "lstm",
        setting("rnn/cell", gate_fn=nnx.hard_sigmoid),
        linen="RNN_0",
        nnx="rnn",
    ),
    Bug(
        "sequence is read backwards",
        "lstm",
        setting("rnn", reverse=True),
        linen="RNN_0",
        nnx="rnn",
        hint="reverse is False in Linen and True in nnx",
    ),
    Bug(
        "left in train mode",
        "transformer",
        lambda model: model.train(),
        linen="blocks_0/attention/out",
        nnx="blocks/0/attention/out",
        where="input",
        hint="nnx_model.eval() turns dropout off",
    ),
    Bug(
        "one dropout left in train mode",
        "transformer",
        lambda model: model.blocks[1].dropout.train(),
        linen="blocks_1/Dropout_0",
        nnx="blocks/1/dropout",
        hint="deterministic is True in Linen and False in nnx",
    ),
    # the code between modules
    Bug(
        "activation",
        "mlp",
        calling("", mlp_call(nnx.tanh)),
        linen="Dense_0",
        nnx="out",
        where="input",
        hint="look in the model (LinenMLP), after Dense_1",
    ),
    Bug(
        "exact gelu",
        "deep transformer",
        calling(
            "blocks/6",
            lambda self, x: self.down(nnx.gelu(self.up(x), approximate=False)),
            "mlp",
        ),
        linen="blocks_6/down",
        nnx="blocks/6/down",
        where="input",
    ),
    Bug(
        "no residual around attention",
        "transformer",
        calling("blocks/1", block_call(first=lambda x, y: y)),
        linen="blocks_1/norm2",
        nnx="blocks/1/norm2",
        where="input",
    ),
    Bug(
        "no residual at the end of a block",
        "deep transformer",
        calling("blocks/7", block_call(second=lambda x, y: y)),
        linen="blocks_7",
        nnx="blocks/7",
        hint="every call inside it matches",
    ),
    Bug(
        "no mask in one block",
        "transformer",
        calling("blocks/1", block_call(lambda self, y, mask: self.attention(y))),
        linen="blocks_1/attention/out",
        nnx="blocks/1/attention/out",
        where="input",
        hint="mask of blocks_1/attention (MultiHeadAttention) is given in Linen only",
    ),
    Bug(
        "another mask",
        "transformer",
        calling(
            "", encoder_call(mask=lambda ids: nnx.make_attention_mask(ids > 2, ids > 2))
        ),
        linen="blocks_0",
        nnx="blocks/0",
        where="input",
    ),
    Bug(
        "heads split otherwise",
        "transformer",
        setting("blocks/1/attention", attention_fn=wrong_heads),
        linen="blocks_1/attention/out",
        nnx="blocks/1/attention/out",
        where="input",
    ),
    Bug(
        "positions off by one",
        "transformer",
        calling("", encoder_call(positions=lambda p: p[1:])),
        linen="blocks_0",
        nnx="blocks/0",
        where="input",
        hint="look in the model (LinenTransformer), after embed",
    ),
    Bug(
        "embedding is scaled",
        "transformer",
        calling("", encoder_call(embed=lambda self, ids: self.embed(ids) * 8**0.5)),
        linen="blocks_0",
        nnx="blocks/0",
        where="input",
    ),
    Bug(
        "final norm forgotten",
        "transformer",
        calling("", encoder_call(norm=lambda self, x: x)),
        linen="norm",
        nnx="-",
    ),
    Bug(
        "embedding not tied",
        "transformer",
        calling("", encoder_call(head=lambda self, x: x @ jnp.eye(8, 11))),
        linen="embed",
        nnx="-",
    ),
    Bug(
        "logits scaled",
        "transformer",
        calling("", encoder_call(head=lambda self, x: self.embed.attend(x) / 8**0.5)),
        linen=".",
        nnx=".",
    ),
    Bug(
        "blocks in another order",
        "deep transformer",
        calling("", encoder_call(blocks=lambda blocks: [*blocks[1:], blocks[0]])),
        linen="blocks_0",
        nnx="blocks/0",
        where="input",
        hint="the order differs",
    ),
    Bug(
        "a block called twice",
        "deep transformer",
        calling("", encoder_call(blocks=lambda b: [*b[:3], b[2], *b[3:]])),
        linen="-",
        nnx="blocks/2",
    ),
    Bug(
        "a block skipped",
        "deep transformer",
        calling("", encoder_call(blocks=lambda b: [*b[:3], *b[4:]])),
        linen="blocks_3",
        nnx="-",
    ),
    Bug(
        "norms exchanged",
        "resnet",
        calling("blocks/0", residual_call(order=("bn2", "bn1"))),
        linen="blocks_0/bn1",
        nnx="blocks/0/bn1",
        where="input",
        hint="the order differs",
    ),
    Bug(
        "activation forgotten",
        "resnet",
        calling("blocks/1", residual_call(act=lambda x: x)),
        linen="blocks_1/conv2",
        nnx="blocks/1/conv2",
        where="input",
    ),
    Bug(
        "residual subtracted",
        "resnet",
        calling("blocks/1", residual_call(add=jnp.subtract)),
        linen="blocks_1",
        nnx="blocks/1",
    ),
    Bug(
        "pooled by the maximum",
        "resnet",
        calling("", resnet_call(lambda x: x.max((1, 2)))),
        linen="head",
        nnx="head",
        where="input",
    ),
    Bug(
        "average pooling",
        "cnn",
        calling("", cnn_call(pool=nnx.avg_pool)),
        linen="Conv_1",
        nnx="conv2",
        where="input",
    ),
    Bug(
        "flattened with channels first",
        "cnn",
        calling("", cnn_call(flat=lambda x: x.transpose(0, 3, 1, 2))),
        linen="Dense_0",
        nnx="out",
        where="input",
        hint="the same values in another order",
    ),
    Bug(
        "height and width exchanged",
        "cnn",
        calling("", cnn_call(start=lambda x: x.swapaxes(1, 2))),
        linen="Conv_0",
        nnx="conv1",
        where="input",
        hint="the same values in another order",
    ),
    Bug(
        "first step in place of the last",
        "lstm",
        calling("", lambda self, x: self.out(self.rnn(x)[:, 0])),
        linen="Dense_0",
        nnx="out",
        where="input",
    ),
    Bug(
        "no activation at the end",
        "autoencoder",
        calling(
            "",
            lambda self, z: self.decoder[1](nnx.tanh(self.decoder[0](z))),
            "decode",
        ),
        linen=".",
        nnx=".",
    ),
    Bug(
        "activation on the code",
        "autoencoder",
        calling("", lambda self, x: self.decode(nnx.tanh(self.encode(x)))),
        linen=".",
        nnx=".",
        where="input",
    ),
    Bug(
        "relu for silu",
        "group norm",
        calling("", group_norm_call),
        linen="up",
        nnx="up",
        where="input",
    ),
    Bug(
        "layers scanned backwards",
        "scan",
        setting("", reverse=True),
        linen="layers",
        nnx="-",
    ),
    Bug(
        "activation in a scanned layer",
        "scan",
        calling("layers", lambda self, x: nnx.relu(self.dense(x))),
        linen="layers",
        nnx="-",
    ),
    Bug(
        "tokens and channels exchanged",
        "mixer",
        calling("", mixer_call(tokens_first=False)),
        linen="tokens",
        nnx="tokens",
        where="input",
    ),
    Bug(
        "no residual after the tokens",
        "mixer",
        calling("", mixer_call(residual=False)),
        linen="LayerNorm_1",
        nnx="norm2",
        where="input",
    ),
    Bug(
        "mean over the wrong axis",
        "mixer",
        calling("", mixer_call(axis=2)),
        linen="head",
        nnx="head",
        where="input",
    ),
    Bug(
        "one picture encoded twice",
        "siamese",
        calling("", siamese_call(lambda a, b: abs(a - b), right="left")),
        linen="Sequential_0",
        nnx="encoder",
        where="input",
    ),
    Bug(
        "absolute value forgotten",
        "siamese",
        calling("", siamese_call(lambda a, b: a - b)),
        linen="Dense_2",
        nnx="out",
        where="input",
    ),
    Bug(
        "gate and value exchanged",
        "glu",
        calling("", glu_call("up", "gate")),
        linen="Dropout_0",
        nnx="dropout",
        where="input",
        hint="the order differs",
    ),
    Bug(
        "another dropout key",
        "glu",
        calling("", glu_call(key=lambda key: jax.random.fold_in(key, 1))),
        linen="Dropout_0",
        nnx="dropout",
        where="input",
    ),
    # what the forward pass does not show
    Bug(
        "momentum",
        "resnet",
        setting("blocks/1/bn1", momentum=0.99),
        "state",
        hint="in blocks_1/bn1",
    ),
    Bug(
        "statistics never updated",
        "resnet",
        lambda model: as_called(model.blocks[0].bn2, frozen_statistics),
        "state",
        hint="in blocks_0/bn2",
    ),
    Bug(
        "gradient stopped",
        "mlp",
        calling("", mlp_call(after=stopped)),
        "gradients",
        hint="Dense_1 is called last of the modules whose gradients differ",
    ),
    Bug(
        "gradient of a branch stopped",
        "glu",
        calling("", glu_call(gated=stopped)),
        "gradients",
        hint="up is called last of the modules whose gradients differ",
    ),
]


def frozen_statistics(self, x):
    before = self.mean[...], self.var[...]
    y = nnx.BatchNorm.__call__(self, x)
    self.mean[...], self.var[...] = before
    return y


def test_the_table():
    assert len(BUGS) >= 40
    assert {bug.pair for bug in BUGS} == set(PAIRS)
    assert len({bug.name for bug in BUGS}) == len(BUGS)


@pytest.fixture
def linen_once(bug, monkeypatch):
    """What the Linen side of a pair computes and calls is the same for all its bugs."""
    program, record = comparison.Comparison._linen_program, divergence.record_linen

    def cached_program(comparison):
        key = bug.pair, len(comparison.checks)
        if key not in COMPUTED:
            values = comparison.linen_values
            COMPUTED[key] = program(comparison)(values, values, comparison.linen_arrays)
        return lambda *arguments: COMPUTED[key]

    def cached_record(run):
        if bug.pair not in COMPUTED:
            COMPUTED[bug.pair] = record(run)
        return COMPUTED[bug.pair]

    monkeypatch.setattr(comparison.Comparison, "_linen_program", cached_program)
    monkeypatch.setattr(divergence, "record_linen", cached_record)


COMPUTED = {}
MODES = itertools.cycle([True, False])  # half of the bugs in graph mode, half in tree


@pytest.mark.parametrize(
    ("bug", "graph"),
    [pytest.param(bug, graph, id=bug.name) for bug, graph in zip(BUGS, MODES)],
)
@pytest.mark.usefixtures("linen_once")
def test_it_is_found(bug, graph):
    checks = parity.CHECKS[: parity.CHECKS.index(bug.check) + 1]
    with nnx.set_graph_mode(graph):
        report = PAIRS[bug.pair].compare(bug.plant, checks=checks)
    assert report.failed == bug.check
    found = report.divergence
    if bug.linen is None:
        assert found is None or not found.found
    else:
        paths = [call.path or "." if call else "-" for call in (found.linen, found.nnx)]
        assert paths == [bug.linen, bug.nnx], report.failure
        if "-" not in paths:
            assert bool(found.input) == (bug.where == "input")
    assert bug.hint in report.failure
