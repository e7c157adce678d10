import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.errors import ModifyScopeVariableError, TraceContextError

from linen2nnx import mapping, parity
from linen_impl.modes import batchnorm_train_step as linen
from nnx_impl.modes import batchnorm_train_step as nnx_side
from parity_tests import train_steps
from parity_tests.entry_inputs import in_any_form

EAGER = (5, 3, 3, 3, 0, False)  # few shapes: each op is compiled for each
JITTED = (5, 33, 4, 1, 1, True)
CASES = [EAGER, JITTED]  # rows, din, width, dout, seed, jit
ENTRY_CASES = [(2, 1, 1, 1, 1), (5, 33, 4, 1, 8)]  # rows, din, width, dout, num_steps
RATE = float(np.float32(0.1))  # of every test: a step is compiled for its rate

# A TrainState with the `apply` of another module, if an equal one, is compiled again.
one_module = functools.cache(linen.MLP)


@pytest.fixture(autouse=True)
def _in_mode(strict, nnx_mode, monkeypatch):
    train_step = train_steps.train_step_of_mode(nnx_mode, nnx_side)
    monkeypatch.setattr(nnx_side, "train_step", train_step)
    monkeypatch.setattr(nnx_side, "evaluate", evaluate_of_mode(nnx_mode))
    monkeypatch.setattr(linen, "MLP", one_module)


@functools.cache
def evaluate_of_mode(mode):
    return nnx.jit(nnx_side.evaluate.__wrapped__)


def create_model(din=3, width=3, dout=3, seed=0):
    return nnx_side.MLP(din, width, dout, rngs=nnx.Rngs(seed))


def pair(din=3, width=3, dout=3, seed=0):
    module = linen.MLP(width, dout)
    return module, *train_steps.random_pair(
        module, lambda: create_model(din, width, dout), din, seed
    )


def optimizers(module, variables, model):
    return (
        linen.create_optimizer(module, variables, linen.create_tx(RATE)),
        nnx_side.create_optimizer(model, nnx_side.create_tx(RATE)),
    )


def batch(rows=5, din=3, dout=3, seed=0):
    return next(train_steps.random_batches(rows, din, dout, seed))


def loss_fn(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


@pytest.mark.parametrize(
    ("rows", "din", "width", "dout", "seed", "jit", "train"),
    [(*EAGER, True), (*EAGER, False), (*JITTED, True)],
)
def test_model(rows, din, width, dout, seed, jit, train):
    module, variables, model = pair(din, width, dout, seed)
    if not train:
        model = nnx.view(model, use_running_average=True)
    parity.assert_parity(
        module,
        variables,
        model,
        batch(rows, din, dout, seed)[0],
        linen_kwargs={"train": train},
        jit=jit,
        optimizer=linen.create_tx(RATE),
    )


@pytest.mark.parametrize(("rows", "din", "width", "dout", "seed", "jit"), CASES)
def test_train_step(rows, din, width, dout, seed, jit):
    module, variables, model = pair(din, width, dout, seed)
    state, optimizer = optimizers(module, variables, model)
    batches = train_steps.random_batches(rows, din, dout, seed)
    state, losses = train_steps.assert_same_training(
        linen, nnx_side, state, model, optimizer, batches, jit=jit
    )
    assert len(set(losses)) == len(losses)
    x, y = next(batches)
    with jax.disable_jit(not jit):
        loss = linen.evaluate(state, x, y)
        parity.assert_equal(loss, nnx_side.evaluate(model, x, y))
        train_steps.assert_same_state(state, model, optimizer)
    assert not model.norm.use_running_average


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def plain_loss(params, x, y):
    z = jnp.dot(x, params["hidden"]["kernel"]) + params["hidden"]["bias"][None]
    mean, var = z.mean(0), z.var(0)
    z = (z - mean[None]) / jnp.sqrt(var[None] + 1e-5)
    z = z * params["norm"]["scale"][None] + params["norm"]["bias"][None]
    z = jnp.dot(jnp.where(z > 0, z, 0), params["head"]["kernel"])
    loss = jnp.mean((z + params["head"]["bias"][None] - y) ** 2)
    return loss, {"mean": mean, "var": var}


def plain_losses(params, stats, x, y, num_steps):
    """BatchNorm, SGD and momentum by their formulas, in numpy."""
    params, stats = jax.tree.map(np.asarray, (params, stats))
    trace, losses = jax.tree.map(np.zeros_like, params), []
    for _ in range(num_steps):
        (loss, new), grads = jax.tree.map(np.asarray, plain_loss(params, x, y))
        losses.append(loss)
        stats = jax.tree.map(lambda old, new: 0.99 * old + 0.01 * new, stats, new)
        trace = jax.tree.map(lambda t, g: g + 0.9 * t, trace, grads)
        params = jax.tree.map(lambda p, t: p - RATE * t, params, trace)
    return np.stack(losses), stats


@pytest.mark.parametrize(("rows", "din", "width", "dout", "num_steps"), ENTRY_CASES)
def test_batchnorm_losses(rows, din, width, dout, num_steps, nnx_mode):
    rng = np.random.default_rng([rows, nnx_mode == "tree"])
    target = train_steps.batch_shapes(linen.MLP(width, dout), din)
    for _ in range(8):
        seed = rng.integers(0, 2**31)
        x = rng.standard_normal((rows, din)) * 10.0 ** rng.integers(0, 3)
        x = x.astype(rng.choice([np.float32, np.float64, np.int32]))
        y = rng.standard_normal((rows, dout))
        numbers = (in_any_form(rng, n) for n in (width, num_steps))
        arguments = in_any_form(rng, seed), x, y, *numbers, np.float32(RATE)
        model = create_model(din, width, dout, int(seed))
        variables = mapping.to_linen(model, target)

        losses = nnx_side.batchnorm_losses(*arguments)

        parity.assert_equal(
            linen.batchnorm_losses(*arguments, variables=variables), losses
        )
        plain, _ = plain_losses(
            variables["params"],
            variables["batch_stats"]["norm"],
            x.astype(np.float32),
            y.astype(np.float32),
            num_steps,
        )
        np.testing.assert_allclose(losses, plain, rtol=1e-4)  # of 8 steps


def test_the_statistics_are_those_of_the_formula():
    _, variables, model = pair(33, 4, 1)
    x, y = batch(5, 33, 1)
    optimizer = nnx_side.create_optimizer(model, nnx_side.create_tx(RATE))
    loss = nnx_side.train_step(model, optimizer, x, y)
    params, stats = variables["params"], variables["batch_stats"]["norm"]
    losses, stats = plain_losses(params, stats, x, y, 1)
    np.testing.assert_allclose(loss, losses[0], rtol=1e-5)  # float32, another order
    np.testing.assert_allclose(model.norm.mean[...], stats["mean"], rtol=1e-5)
    np.testing.assert_allclose(model.norm.var[...], stats["var"], rtol=1e-5)


@pytest.mark.parametrize("side", [linen, nnx_side])
def test_a_learning_rate_has_one_transformation(side):
    """A step with another one, if equal, is compiled again."""
    assert side.create_tx(0.5) is side.create_tx(0.5)


def test_linen_entry_from_its_own_seed():
    x, y = batch(2, 1, 1)
    variables = linen.MLP(1, 1).init(jax.random.key(7), x)
    parity.assert_equal(
        linen.batchnorm_losses(7, x, y, 1, 1, RATE, variables=variables),
        linen.batchnorm_losses(7, x, y, 1, 1, RATE),
    )


def test_pitfall_a_new_model_is_in_train_mode():
    """A new nnx model is in train mode

    A call for a prediction updates the statistics. Linen asks for the mode. Predict
    with `nnx.view(model, use_running_average=True)`.
    """
    model = create_model()
    before = model.norm.mean[...]
    model(batch()[0])
    assert (model.norm.mean[...] != before).any()


def test_pitfall_jax_jit_loses_the_statistics():
    """`jax.jit` loses the statistics

    `jax.jit` takes the model as a pytree, updates a copy of the statistics and drops
    it. Use `nnx.jit`.
    """
    model = create_model()
    before = model.norm.mean[...]
    jax.jit(lambda model, x: model(x))(model, batch()[0])
    parity.assert_equal(before, model.norm.mean[...])


def test_pitfall_closing_over_the_model_raises():
    """`TraceContextError: Cannot mutate BatchStat from a different trace level`

    The jitted function closes over the model. Make the model an argument.
    """
    model = create_model()
    for transform in (jax.jit, nnx.jit):
        with pytest.raises(TraceContextError, match="Cannot mutate BatchStat from a"):
            transform(lambda x: model(x))(batch()[0])


def test_pitfall_jax_grad_raises():
    """`jax.grad` does not take the statistics along

    With `rest` as an argument too, `jax.grad` raises `TraceContextError: Cannot mutate
    BatchStat from a different trace level`. `nnx.grad` carries the updates out.
    """
    model, (x, y) = create_model(), batch()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def split_loss(params, rest):
        return loss_fn(nnx.merge(graphdef, params, rest), x, y)

    nnx.grad(split_loss)(params, rest)
    with pytest.raises(TraceContextError, match="Cannot mutate BatchStat from a"):
        jax.grad(split_loss)(params, rest)


def test_pitfall_rest_must_be_an_argument():
    """`rest` must be an argument of the loss

    A loss that closes over `rest` raises `TraceContextError: Cannot mutate BatchStat
    from a different trace level`.
    """
    model, (x, y) = create_model(), batch()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    with pytest.raises(TraceContextError, match="Cannot mutate BatchStat from a"):
        nnx.grad(lambda params: loss_fn(nnx.merge(graphdef, params, rest), x, y))(
            params
        )


def test_pitfall_in_tree_mode_statistics_and_keys_are_differentiated(nnx_mode):
    """In tree mode all of a model is differentiated

    `nnx.grad(loss_fn)(model, x, y)` gives gradients of the statistics too, which
    `nnx.Optimizer(model, tx, wrt=nnx.Param)` drops. With dropout in the model it raises
    `TypeError: grad requires real- or complex-valued inputs`, because RNG state has no
    gradient. The split above works in both modes.
    """
    model, (x, y) = create_model(), batch()
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
    grad = functools.partial(nnx.grad, argnums=nnx.DiffState(0, nnx.Param))
    if nnx_mode == "graph":
        assert len(jax.tree.leaves(grad(loss_fn)(create_model(), *batch()))) == 6
    else:
        with pytest.raises(ValueError, match="`argnums` cannot contain `DiffState`"):
            grad(loss_fn)(create_model(), *batch())


def test_pitfall_eval_inside_jit_stays_in_graph_mode(nnx_mode):
    """`model.eval()` inside `nnx.jit` stays in graph mode

    In graph mode the attribute is carried out of the jitted function: the model
    evaluates from then on and its statistics stand still. In tree mode it is not. Use a
    view.
    """
    model = create_model()

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
    module, variables, _ = pair()
    with pytest.raises(ModifyScopeVariableError, match="Cannot update variable"):
        module.apply(variables, batch()[0], train=True)


def test_pitfall_linen_updates_that_are_not_kept_are_lost():
    """Linen drops updates that are not kept

    `state.apply_gradients(grads=grads)` without the new statistics keeps the old ones.
    """
    module, variables, _ = pair()
    state = linen.create_optimizer(module, variables, linen.create_tx(RATE))
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
    _, _, model = pair()
    outputs = [model(batch(1, seed=seed)[0]) for seed in (1, 2)]
    parity.assert_equal(*outputs)
    one_row = batch(1)
    grads = nnx.state(nnx.grad(loss_fn)(model, *one_row), nnx.Param)
    assert not grads["hidden"]["kernel"][...].any()


def test_pitfall_bfloat16_params_give_float32_outputs():
    """With bfloat16 params nnx gives float32

    Where params and input are bfloat16 and the statistics float32, `nnx.BatchNorm`
    returns float32, and Linen's returns bfloat16.
    """
    module, variables, model = pair()
    to_bfloat16 = functools.partial(
        jax.tree.map, lambda leaf: leaf.astype(jnp.bfloat16)
    )
    params = to_bfloat16(variables["params"])
    nnx.update(model, to_bfloat16(nnx.state(model, nnx.Param)))
    model = nnx.view(model, use_running_average=True)
    x = batch()[0].astype(jnp.bfloat16)
    apply = functools.partial(module.apply, train=False)
    with jax.numpy_dtype_promotion("standard"):
        output = jax.eval_shape(apply, {**variables, "params": params}, x)
        assert output.dtype == jnp.bfloat16
        assert nnx.eval_shape(lambda: model(x)).dtype == jnp.float32
