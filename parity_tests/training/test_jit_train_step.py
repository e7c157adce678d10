"""Parity, cost and pitfalls of `training/jit_train_step`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict, freeze
from flax.errors import TraceContextError

from linen2nnx import Pair, parity
from linen2nnx.cost.step import Step, plain_batch_norm, plain_dense, plain_dropout
from linen2nnx.suite.problem import JITTED, Compare, Mistake, Problem
from linen2nnx.suite.training import Training
from linen_impl.training import jit_train_step as linen
from nnx_impl.training import jit_train_step as nnx_side

EXPECTED = [
    {
        "flax": "<0.12.0",
        "modes": ["graph"],
        "verdict": "not there yet",
        "cause": "the blocks are in an nnx.List, since 0.12.0",
    },
    {
        "flax": ">=0.12.0,<0.12.5",
        "modes": ["graph"],
        "verdict": "not there yet",
        "cause": "one of the idioms is nnx.jit_partial, since 0.12.5",
    },
    {
        "flax": "==0.12.6",
        "modes": ["tree"],
        "verdict": "fails",
        "cause": "nnx.jit in tree mode does not take a dropout "
        "without rngs, whose stream is None",
    },
]

ADAM = optax.adam(1e-3)
BOTH = ("graph", "tree")


def mlp(din, num_layers, features, rows=5):
    return Pair(
        linen.MLP(num_layers, features),
        partial(nnx_side.MLP, din, num_layers, features),
        [(rows, din)],
        randomness="same keys",
    )


def train_state(pair):
    key, module = jax.random.key(5), pair.linen
    return linen.TrainState.create(
        apply_fn=module.apply, tx=ADAM, key=key, **pair.variables
    )


def create_optimizer(model):
    return nnx.Optimizer(model, ADAM, wrt=nnx.Param)


def plain_state(pair):
    """Parameters, statistics, moments, and the key and count of the dropout."""
    variables, model = pair.variables, pair.model
    params, stats = (
        [part[f"blocks_{i}"] for i in range(len(model.blocks))]
        for part in (variables["params"], variables["batch_stats"])
    )
    params = params, variables["params"]["head"]
    stats = [(block["norm"]["mean"], block["norm"]["var"]) for block in stats]
    stream = model.dropout_rngs
    return params, stats, ADAM.init(params), (stream.key[...], stream.count[...])


def plain_step(state, x, y):
    params, stats, moments, (key, count) = state

    def loss_fn(params):
        blocks, head = params
        output, updated = x, []
        for i, (block, (mean, var)) in enumerate(zip(blocks, stats)):
            output = plain_dense(block["linear"], output)
            output, *running = plain_batch_norm(block["norm"], mean, var, output)
            dropout_key = jax.random.fold_in(key, count + i)
            output = plain_dropout(dropout_key, 0.1, jax.nn.relu(output))
            updated.append(tuple(running))
        return jnp.mean((plain_dense(head, output) - y) ** 2), updated

    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, moments = ADAM.update(grads, moments, params)
    params = optax.apply_updates(params, updates)
    return (params, stats, moments, (key, count + len(stats))), loss


problem = Problem(
    linen,
    nnx_side,
    pair=mlp,
    sizes=[(33, 1, 3), (1, 2, 1)],
    compared={"model": Compare(sizes=[(1, 2, 1)])},
    runs=[JITTED],
    training=Training(
        state=train_state,
        optimizer=create_optimizer,
        linen=linen.train,
        nnx=nnx_side.train,
        idioms={
            "nnx.jit": (nnx_side.train_by_nnx_jit, BOTH),
            "nnx.jit_partial": (nnx_side.train_by_jit_partial, BOTH),
            "nnx.cached_partial": (nnx_side.train_by_cached_partial, ["graph"]),
        },
    ),
    cost=Step(
        linen=linen.train_step,
        state=train_state,
        nnx=nnx_side.train_step,
        optimizer=create_optimizer,
        plain=plain_step,
        plain_state=plain_state,
        size=lambda layers: (32, layers, 32, 8),
        layers=[1, 4, 16, 64],
        draws_keys=True,
        limit_tolerance=parity.Tolerance(
            "XLA fuses the sums of the plain step differently", rtol=1e-5
        ),
    ),
    mistakes=[
        Mistake("nnx", "nnx.relu(self.norm", "nnx.gelu(self.norm", "training"),
        Mistake("nnx", "optimizer.update(model, grads)", "pass", "training"),
        Mistake(
            "nnx",
            "nnx.update((model, optimizer), state)",
            "nnx.update(model, state[0])",
            "training",
        ),
        Mistake("nnx", "return self.dropout(x, rngs=rngs)", "return x", "training"),
        Mistake(
            "nnx",
            "return [step(x, y) for x, y in batches]",
            "return [step(-x, y) for x, y in batches]",
            "idioms",
        ),
        Mistake(
            "linen",
            "apply_gradients(grads=grads, **updates)",
            "apply_gradients(grads=grads)",
            "training",
        ),
        Mistake("linen", "(output - y) ** 2", "jnp.abs(output - y)", "training"),
        Mistake("linen", "deterministic=not train", "deterministic=train", "training"),
    ],
)
TestJitTrainStep = problem.tests()


@pytest.fixture(autouse=True)
def _promotion(strict):
    """JAX not at its strictest: optax raises a float to an integer power."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Trained:
    """The nnx side of a small pair, with its optimizer and batches."""

    def __init__(self):
        self.pair = mlp(33, 1, 3)
        self.model, self.optimizer = problem.training.trained(self.pair)
        self.both = self.model, self.optimizer
        self.batches = problem.training.batches(self.pair)


def test_pitfall_a_frozen_dict_of_statistics_traces_twice():
    """Linen: a `FrozenDict` of statistics traces twice

    The statistics that `apply` returns are a plain dict. Where the first state holds a
    `FrozenDict`, the second one is of another structure, and the step is traced and
    compiled again.
    """
    pair, traces = mlp(33, 1, 3), []

    @jax.jit
    def train_step(state, x, y):
        traces.append(type(state.batch_stats))
        return linen.train_step(state, x, y)

    state = train_state(pair)
    state = state.replace(batch_stats=freeze(state.batch_stats))
    for x, y in problem.training.batches(pair)[:3]:
        state, _ = train_step(state, x, y)
    assert traces == [FrozenDict, dict]


def test_pitfall_jax_jit_of_the_modules_loses_every_update():
    """`jax.jit` of the modules loses every update

    `jax.jit(train_step)(model, optimizer, x, y)` runs and returns a loss. Its modules
    are copies: parameters, statistics and moments stay as they were, and so does the
    loss.
    """
    pair = Trained()
    before = nnx.to_pure_dict(nnx.state(pair.both))
    step = jax.jit(nnx_side.train_step)
    first, second = (step(*pair.both, *pair.batches[0]) for _ in range(2))
    assert first == second
    parity.assert_equal(before, nnx.to_pure_dict(nnx.state(pair.both)))


def test_pitfall_a_model_that_jax_jit_closes_over(nnx_mode):
    """`ValueError: Cannot extract graph node from different trace level`

    The function under `jax.jit` closes over the model instead of taking its state. In
    tree mode it is a `TraceContextError`: `Cannot mutate BatchStat from a different
    trace level`.
    """
    pair = Trained()
    step = jax.jit(lambda x, y: nnx_side.train_step(*pair.both, x, y))
    if nnx_mode == "graph":
        with pytest.raises(
            ValueError, match="Cannot extract graph node from different trace level"
        ):
            step(*pair.batches[0])
        return
    with pytest.raises(
        TraceContextError, match="Cannot mutate BatchStat from a different trace level"
    ):
        step(*pair.batches[0])


def test_pitfall_the_model_is_behind_until_it_is_updated():
    """The model is behind until it is updated

    While the state is held as a dict, the model keeps its first values. Evaluate what
    `nnx.merge` gives, or call `nnx.update((model, optimizer), state)` first.
    """
    pair = Trained()
    bias = pair.model.head.bias[...]
    graphdef, state = nnx.split(pair.both)
    state = nnx.to_pure_dict(state)

    @jax.jit
    def step(state, x, y):
        trained = nnx.merge(graphdef, state)
        loss = nnx_side.train_step(*trained, x, y)
        return nnx.to_pure_dict(nnx.state(trained)), loss

    state, _ = step(state, *pair.batches[0])
    np.testing.assert_array_equal(pair.model.head.bias[...], bias)
    nnx.update(pair.both, state)
    assert (pair.model.head.bias[...] != bias).all()


def test_pitfall_donating_the_state_deletes_the_arrays_of_the_model():
    """`RuntimeError: Array has been deleted`

    The state shares its arrays with the model that it was split from. Donated, with
    `donate_argnums=0`, they are gone from the model too, until `nnx.update` gives it
    new ones.
    """
    pair = Trained()
    state = nnx.to_pure_dict(nnx.state(pair.both))
    step = jax.jit(lambda state: jax.tree.map(jnp.add, state, state), donate_argnums=0)
    step(state[0]["head"])
    with pytest.raises(RuntimeError, match="Array has been deleted"):
        np.asarray(pair.model.head.kernel[...])


def test_pitfall_a_param_that_is_replaced_later_is_not_trained(nnx_mode):
    """A Param that is replaced later is not trained

    `nnx.cached_partial` and `nnx.jit_partial` go on with the Variables that they were
    given. `model.head.kernel[...] = array` reaches them; `model.head.kernel =
    nnx.Param(array)` does not, and the new Param stays as it is.
    """
    pair = Trained()
    if nnx_mode == "graph":
        step = nnx.cached_partial(nnx.jit(nnx_side.train_step), *pair.both)
    else:
        step = nnx.jit_partial(nnx_side.train_step, *pair.both, graph=False)
    step(*pair.batches[0])
    zeros = jnp.zeros_like(pair.model.head.kernel[...])
    pair.model.head.kernel[...] = zeros
    step(*pair.batches[1])
    assert (pair.model.head.kernel[...] != 0).any()
    pair.model.head.kernel = nnx.Param(zeros)
    step(*pair.batches[2])
    np.testing.assert_array_equal(pair.model.head.kernel[...], zeros)


def test_pitfall_cached_partial_takes_graph_mode(nnx_mode):
    """`ValueError: cached_partial is a graph-mode-only API`

    In tree mode, take `nnx.jit_partial` or hold a pure dict.
    """
    pair = Trained()
    if nnx_mode == "graph":
        nnx.cached_partial(nnx.jit(nnx_side.train_step), *pair.both)
        return
    with pytest.raises(ValueError, match="cached_partial is a graph-mode-only API"):
        nnx.cached_partial(nnx.jit(nnx_side.train_step), *pair.both)


def test_pitfall_a_python_number_that_changes_traces_again():
    """A Python number that changes traces again

    `model.epoch = epoch` is part of the graphdef. Each new value traces and compiles
    the step once more. Keep it in a Variable, or outside of the model.
    """
    model, traces = mlp(3, 1, 3).model, []

    @nnx.jit
    def apply_head(model, x):
        traces.append(model.epoch)
        return model.head(x)

    for epoch in range(3):
        model.epoch = epoch
        apply_head(model, jnp.ones(3))
    assert traces == [0, 1, 2]


def test_pitfall_every_dropout_with_rngs_of_its_own_adds_two_leaves():
    """Every dropout with `rngs` of its own adds two leaves

    `nnx.Dropout(rate, rngs=rngs)` forks a stream: 64 of them put 64 keys and 64 counts
    into the state that every step carries. One stream of the model, handed to each
    layer, is two leaves.
    """
    rngs = nnx.Rngs(dropout=0)
    own = nnx.List(nnx.Dropout(0.1, rngs=rngs) for _ in range(64))
    assert len(jax.tree.leaves(nnx.state(own, nnx.RngState))) == 128
    model = mlp(1, 3, 1).model
    assert len(jax.tree.leaves(nnx.state(model, nnx.RngState))) == 2


def test_pitfall_nnx_grad_of_the_whole_model(nnx_mode):
    """`TypeError: grad requires real- or complex-valued inputs ... got uint32`

    In tree mode `nnx.grad(loss_fn)(model)` differentiates every leaf, and the count of
    a dropout stream is a whole number. Split the Params off, as the step does. In graph
    mode it differentiates the Params only.
    """
    pair = Trained()
    x, y = pair.batches[0]

    def loss_fn(model):
        return jnp.mean((model(x) - y) ** 2)

    if nnx_mode == "graph":
        grads = nnx.eval_shape(nnx.grad(loss_fn), pair.model)
        paths = nnx.to_flat_state(grads).paths
        assert paths == nnx.to_flat_state(nnx.state(pair.model, nnx.Param)).paths
        return
    with pytest.raises(TypeError, match=r"grad requires real.* got uint32"):
        nnx.grad(loss_fn)(pair.model)
