"""Parity, cost and pitfalls of `modes/batchnorm_train_step`."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.errors import ModifyScopeVariableError, TraceContextError

from linen2nnx import Pair, parity
from linen2nnx.cost.step import Step, plain_batch_norm, plain_dense
from linen2nnx.suite.problem import JITTED, OP_BY_OP, Compare, Mistake, Problem
from linen2nnx.suite.training import (
    Training,
    assert_same_state,
    linen_loop,
    nnx_loop,
)
from linen_impl.modes import batchnorm_train_step as linen
from nnx_impl.modes import batchnorm_train_step as nnx_side

EXPECTED = [
    {
        "flax": "<0.11.0",
        "modes": ["graph"],
        "verdict": "not there yet",
        "cause": "the page evaluates with nnx.view, since 0.12.4",
    },
    {
        "flax": "==0.11.0",
        "modes": ["graph"],
        "verdict": "fails",
        "cause": "statistics updated in nnx.value_and_grad of split "
        "state do not reach the model",
    },
    {
        "flax": ">0.11.0,<0.12.4",
        "modes": ["graph"],
        "verdict": "not there yet",
        "cause": "the page evaluates with nnx.view, since 0.12.4",
    },
]

RATE = 1e-3


def mlp(din=3, width=3, dout=3, rows=5, train=True):
    def create(rngs):
        model = nnx_side.MLP(din, width, dout, rngs=rngs)
        return model if train else nnx.view(model, use_running_average=True)

    return Pair(
        linen.MLP(width, dout), create, [(rows, din)], linen_kwargs={"train": train}
    )


def train_state(pair):
    return linen.create_optimizer(pair.linen, pair.variables, linen.create_tx(RATE))


def create_optimizer(model):
    return nnx_side.create_optimizer(model, nnx_side.create_tx(RATE))


def plain_state(pair):
    """Parameters, statistics and the trace of the momentum."""
    params, stats = pair.variables["params"], pair.variables["batch_stats"]["norm"]
    return params, (stats["mean"], stats["var"]), linen.create_tx(RATE).init(params)


def plain_step(state, x, y):
    params, stats, trace = state

    def loss_fn(params):
        output = plain_dense(params["hidden"], x)
        output, *updated = plain_batch_norm(params["norm"], *stats, output)
        output = plain_dense(params["head"], jax.nn.relu(output))
        return jnp.mean((output - y) ** 2), tuple(updated)

    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, trace = linen.create_tx(RATE).update(grads, trace, params)
    return (optax.apply_updates(params, updates), stats, trace), loss


problem = Problem(
    linen,
    nnx_side,
    pair=mlp,
    sizes=[(3, 3, 3), (33, 4, 1)],
    runs=[OP_BY_OP, JITTED],
    compared={
        "train": Compare(optimizer=linen.create_tx(RATE)),
        "evaluate": Compare(pair=partial(mlp, train=False), sizes=[(3, 3, 3)]),
    },
    training=Training(
        state=train_state,
        optimizer=create_optimizer,
        linen=linen_loop(linen.train_step),
        nnx=nnx_loop(nnx_side.train_step),
    ),
    cost=Step(
        linen=linen.train_step.__wrapped__,
        state=train_state,
        nnx=nnx_side.train_step.__wrapped__,
        optimizer=create_optimizer,
        plain=plain_step,
        plain_state=plain_state,
        size=lambda layers: (32, 32, 32, 8),
        limit_tolerance=parity.Tolerance(
            "XLA fuses the sums of the plain step differently", rtol=1e-5
        ),
    ),
    mistakes=[
        Mistake(
            "nnx",
            f"{' ' * 8}return jnp.mean((model(x)",
            f"{' ' * 8}return jnp.mean((nnx.view(model, use_running_average=True)(x)",
            "training",
        ),
        Mistake(
            "nnx",
            "optimizer.update(model, grads)",
            "optimizer.update(model, grads), model.norm(x)",
            "training",
        ),
        Mistake(
            "nnx",
            "nnx.BatchNorm(width, rngs=rngs)",
            "nnx.BatchNorm(width, momentum=0.9, rngs=rngs)",
            "train",
        ),
        Mistake(
            "nnx",
            "use_running_average=True",
            "use_running_average=False",
            "test_evaluate",
        ),
        Mistake(
            "nnx",
            "rate, momentum=0.9",
            "rate, momentum=0.9, nesterov=True",
            "training",
        ),
        Mistake("linen", "grads=grads, **updates", "grads=grads", "training"),
        Mistake(
            "linen",
            "use_running_average=not train",
            "use_running_average=train",
            "train",
        ),
        Mistake("linen", "nn.relu(x)", "nn.gelu(x)", "train"),
    ],
)
TestBatchNormTrainStep = problem.tests()


def batch():
    return problem.training.batches(mlp())[0]


@pytest.mark.parametrize("jit", [False, True])
def test_evaluate(jit):
    """The same loss, and nothing is changed."""
    pair = mlp()
    state, (model, optimizer) = train_state(pair), problem.training.trained(pair)
    evaluate = nnx.jit(nnx_side.evaluate.__wrapped__)
    with jax.disable_jit(not jit):
        loss = linen.evaluate(state, *batch())
        parity.assert_equal(loss, evaluate(model, *batch()))
    assert_same_state(state, model, optimizer)
    assert not model.norm.use_running_average


def test_the_statistics_are_those_of_the_formula():
    pair = mlp()
    model, optimizer = problem.training.trained(pair)
    x, y = batch()
    hidden = np.asarray(model.hidden(x))
    old = nnx.to_pure_dict(nnx.state(model.norm, nnx.BatchStat))
    problem.training.nnx(model, optimizer, [(x, y)])
    for name, new in ("mean", hidden.mean(0)), ("var", hidden.var(0)):
        np.testing.assert_allclose(
            getattr(model.norm, name)[...],
            0.99 * np.asarray(old[name]) + 0.01 * new,
            rtol=1e-5,  # float32, another order
        )


@pytest.mark.parametrize("side", [linen, nnx_side])
def test_the_first_step_is_the_rate_times_the_gradient(side):
    for rate in (0.5, 0.25):
        tx, one = side.create_tx(rate), jnp.float32(1)
        updates, _ = tx.update(one, tx.init(one))
        assert updates == -rate


@pytest.mark.parametrize("side", [linen, nnx_side])
def test_a_learning_rate_has_one_transformation(side):
    """A step with another one, if equal, is compiled again."""
    assert side.create_tx(0.5) is side.create_tx(0.5)


def loss_fn(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


def test_pitfall_a_new_model_is_in_train_mode():
    """A new nnx model is in train mode

    A call for a prediction updates the statistics. Linen asks for the mode. Predict
    with `nnx.view(model, use_running_average=True)`.
    """
    model = mlp().model
    before = model.norm.mean[...]
    model(batch()[0])
    assert (model.norm.mean[...] != before).any()


def test_pitfall_jax_jit_loses_the_statistics():
    """`jax.jit` loses the statistics

    `jax.jit` takes the model as a pytree, updates a copy of the statistics and drops
    it. Use `nnx.jit`.
    """
    model = mlp().model
    before = model.norm.mean[...]
    jax.jit(lambda model, x: model(x))(model, batch()[0])
    parity.assert_equal(before, model.norm.mean[...])


def test_pitfall_closing_over_the_model_raises():
    """`TraceContextError: Cannot mutate BatchStat from a different trace level`

    The jitted function closes over the model. Make the model an argument.
    """
    model = mlp().model
    for transform in (jax.jit, nnx.jit):
        with pytest.raises(TraceContextError, match="Cannot mutate BatchStat from a"):
            transform(lambda x: model(x))(batch()[0])


def test_pitfall_jax_grad_raises():
    """`TraceContextError`: `jax.grad` does not take the statistics along

    With `rest` as an argument too, `jax.grad` raises `TraceContextError: Cannot mutate
    BatchStat from a different trace level`. `nnx.grad` carries the updates out.
    """
    model, (x, y) = mlp().model, batch()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def split_loss(params, rest):
        return loss_fn(nnx.merge(graphdef, params, rest), x, y)

    nnx.grad(split_loss)(params, rest)
    with pytest.raises(TraceContextError, match="Cannot mutate BatchStat from a"):
        jax.grad(split_loss)(params, rest)


def test_pitfall_rest_must_be_an_argument():
    """`TraceContextError`: `rest` must be an argument of the loss

    A loss that closes over `rest` raises `TraceContextError: Cannot mutate BatchStat
    from a different trace level`.
    """
    model, (x, y) = mlp().model, batch()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    with pytest.raises(TraceContextError, match="Cannot mutate BatchStat from a"):
        nnx.grad(lambda params: loss_fn(nnx.merge(graphdef, params, rest), x, y))(
            params
        )


def test_pitfall_in_tree_mode_statistics_and_keys_are_differentiated(nnx_mode):
    """`TypeError` in tree mode, where all of a model is differentiated

    `nnx.grad(loss_fn)(model, x, y)` gives gradients of the statistics too, which
    `nnx.Optimizer(model, tx, wrt=nnx.Param)` drops. With dropout in the model it raises
    `TypeError: grad requires real- or complex-valued inputs`, because RNG state has no
    gradient. The split above works in both modes.
    """
    model, (x, y) = mlp().model, batch()
    grads = nnx.grad(loss_fn)(model, x, y)
    assert len(jax.tree.leaves(grads)) == (6 if nnx_mode == "graph" else 8)
    model.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    if nnx_mode == "graph":
        nnx.grad(loss_fn)(model, x, y)
    else:
        with pytest.raises(TypeError, match="grad requires real- or complex-valued"):
            nnx.grad(loss_fn)(model, x, y)


def test_pitfall_diff_state_is_of_graph_mode(nnx_mode):
    """`` ValueError: `argnums` cannot contain `DiffState` ``

    `DiffState(0, nnx.Param)` as `argnums` of `nnx.grad` is of graph mode only.
    """
    grad = partial(nnx.grad, argnums=nnx.DiffState(0, nnx.Param))
    if nnx_mode == "graph":
        assert len(jax.tree.leaves(grad(loss_fn)(mlp().model, *batch()))) == 6
    else:
        with pytest.raises(ValueError, match="`argnums` cannot contain `DiffState`"):
            grad(loss_fn)(mlp().model, *batch())


def test_pitfall_eval_inside_jit_stays_in_graph_mode(nnx_mode):
    """`model.eval()` inside `nnx.jit` stays in graph mode

    In graph mode the attribute is carried out of the jitted function: the model
    evaluates from then on and its statistics stand still. In tree mode it is not. Use a
    view.
    """
    model = mlp().model

    @nnx.jit
    def evaluate(model, x):
        model.eval()
        return model(x)

    evaluate(model, batch()[0])
    assert model.norm.use_running_average == (nnx_mode == "graph")
    before = model.norm.mean[...]
    model(batch()[0])  # meant to train
    assert (model.norm.mean[...] == before).all() == (nnx_mode == "graph")


def test_pitfall_linen_without_mutable_raises():
    """`ModifyScopeVariableError: Cannot update variable`

    Linen's `apply` in train mode without `mutable=["batch_stats"]`.
    """
    pair = mlp()
    with pytest.raises(ModifyScopeVariableError, match="Cannot update variable"):
        pair.linen.apply(pair.variables, batch()[0], train=True)


def test_pitfall_linen_updates_that_are_not_kept_are_lost():
    """Linen drops updates that are not kept

    `state.apply_gradients(grads=grads)` without the new statistics keeps the old ones.
    """
    state = train_state(mlp())
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    forgetful = state.apply_gradients(grads=zeros)  # no batch_stats=
    parity.assert_equal(state.batch_stats, forgetful.batch_stats)
    assert int(forgetful.step) == 1


def test_pitfall_momentum_is_the_share_of_the_old_value():
    """`momentum` is the share of the old value

    With `momentum=0.75` a statistic at 0 that meets a batch mean of 8 becomes 2, on
    both sides.
    """
    norm = nnx.BatchNorm(3, momentum=0.75, rngs=nnx.Rngs(0))
    norm(jnp.full((5, 3), 8.0))
    parity.assert_equal(jnp.full(3, 2.0), norm.mean[...])  # 0.75 * 0 + 0.25 * 8
    linen_norm = nn.BatchNorm(use_running_average=False, momentum=0.75)
    variables = linen_norm.init(jax.random.key(0), jnp.ones((5, 3)))
    _, updates = linen_norm.apply(
        variables, jnp.full((5, 3), 8.0), mutable=["batch_stats"]
    )
    parity.assert_equal(updates["batch_stats"]["mean"], norm.mean[...])


def test_pitfall_before_training_evaluation_does_not_normalise():
    """Before training, evaluation does not normalise

    Running mean 0 and variance 1 leave the input as it is, up to epsilon.
    """
    norm = nnx.BatchNorm(2, use_running_average=True, rngs=nnx.Rngs(0))
    x = jnp.array([[100.0, -3.0], [300.0, 5.0]])
    np.testing.assert_allclose(norm(x), x, rtol=1e-5)  # epsilon


def test_pitfall_a_batch_of_one_row_is_normalised_to_nothing():
    """A batch of one row is normalised to nothing

    Its variance is zero. In train mode the output is the same for every input, and the
    layers before get no gradient.
    """
    pair = mlp(rows=1)
    model, batches = pair.model, problem.training.batches(pair)
    parity.assert_equal(*[model(x) for x, _ in batches[:2]])
    grads = nnx.state(nnx.grad(loss_fn)(model, *batches[0]), nnx.Param)
    assert not grads["hidden"]["kernel"][...].any()


def test_pitfall_bfloat16_params_give_float32_outputs():
    """With bfloat16 params nnx gives float32

    Where params and input are bfloat16 and the statistics float32, `nnx.BatchNorm`
    returns float32, and Linen's returns bfloat16.
    """
    pair = mlp()
    variables, model = pair.variables, pair.model
    to_bfloat16 = partial(jax.tree.map, lambda leaf: leaf.astype(jnp.bfloat16))
    params = to_bfloat16(variables["params"])
    nnx.update(model, to_bfloat16(nnx.state(model, nnx.Param)))
    model = nnx.view(model, use_running_average=True)
    x = batch()[0].astype(jnp.bfloat16)
    apply = partial(pair.linen.apply, train=False)
    with jax.numpy_dtype_promotion("standard"):
        output = jax.eval_shape(apply, {**variables, "params": params}, x)
        assert output.dtype == jnp.bfloat16
        assert nnx.eval_shape(lambda: model(x)).dtype == jnp.float32
