import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.errors import TraceContextError

from linen2nnx import mapping, parity
from linen_impl.training import adam_optimizer as linen
from nnx_impl.training import adam_optimizer as nnx_side
from parity_tests import train_steps
from parity_tests.entry_inputs import in_any_form

CASES = [  # rows, din, num_layers, features, seed, dtype, jit
    (5, 3, 2, 3, 0, jnp.float32, False),  # few shapes: each op is compiled for each
    (1, 33, 2, 1, 1, jnp.bfloat16, True),
]
DEEP = (5, 3, 12, 3, 3, jnp.float32, False)
ENTRY_CASES = [(1, 1, 1, 1, 1), (5, 3, 2, 3, 12)]  # ... and steps
SCHEDULE = float(np.float32(0.1)), 12  # of every test: a step is compiled for it
CLIPPING_ROUNDS = parity.Tolerance(
    "the clip norm adds the leaves in another order", rtol=1e-5, atol=1e-7
)


# A TrainState with the `apply` of another module, if an equal one, is compiled again.
one_module = functools.cache(linen.MLP)


@pytest.fixture(autouse=True)
def _in_mode(strict, nnx_mode, monkeypatch):
    """Nor is JAX at its strictest: optax raises a float to an integer power."""
    train_step = train_steps.train_step_of_mode(nnx_mode, nnx_side)
    monkeypatch.setattr(nnx_side, "train_step", train_step)
    monkeypatch.setattr(linen, "MLP", one_module)
    with jax.numpy_dtype_promotion("standard"):
        yield


def create_model(din=3, num_layers=2, features=3, seed=0):
    return nnx_side.MLP(din, num_layers, features, rngs=nnx.Rngs(seed))


def pair(din, num_layers, features, seed=0, dtype=jnp.float32, scale=1.0):
    module = linen.MLP(num_layers, features)
    variables, model = train_steps.random_pair(
        module, lambda: create_model(din, num_layers, features), din, seed, dtype
    )
    variables = jax.tree.map(lambda leaf: leaf * scale, variables)
    return module, variables, mapping.to_nnx(variables, model)


def optimizers(module, variables, model):
    """Of 12 steps the first is at rate zero and the second at the peak."""
    tx = linen.create_tx(*SCHEDULE), nnx_side.create_tx(*SCHEDULE)
    return (
        linen.create_optimizer(module, variables["params"], tx[0]),
        nnx_side.create_optimizer(model, tx[1]),
    )


def last_layer_optimizers(module, variables, model):
    tx = linen.create_tx(*SCHEDULE), nnx_side.create_tx(*SCHEDULE)
    return (
        linen.create_last_layer_optimizer(module, variables["params"], tx[0]),
        nnx_side.create_last_layer_optimizer(model, tx[1]),
    )


def batches(rows, din, features, seed=0, dtype=jnp.float32, scale=1.0):
    for x, y in train_steps.random_batches(rows, din, features, seed, dtype):
        yield x, y * scale


@pytest.mark.parametrize(
    ("rows", "din", "num_layers", "features", "seed", "dtype", "jit"), [*CASES, DEEP]
)
def test_model(rows, din, num_layers, features, seed, dtype, jit):
    module, variables, model = pair(din, num_layers, features, seed, dtype)
    x, _ = next(batches(rows, din, features, seed, dtype))
    tx = linen.create_tx(0.1, 5)  # without a warm-up, so that the first step counts
    parity.assert_parity(
        module,
        variables,
        model,
        x,
        jit=jit,
        optimizer=tx,
        tolerance={"optimizer step": CLIPPING_ROUNDS} if num_layers > 10 else None,
    )


@pytest.mark.parametrize(
    ("rows", "din", "num_layers", "features", "seed", "dtype", "jit"), CASES
)
def test_train_step(rows, din, num_layers, features, seed, dtype, jit):
    module, variables, model = pair(din, num_layers, features, seed, dtype)
    state, optimizer = optimizers(module, variables, model)
    random_batches = batches(rows, din, features, seed, dtype)
    _, losses = train_steps.assert_same_training(
        linen, nnx_side, state, model, optimizer, random_batches, jit=jit
    )
    assert len(set(losses)) == len(losses)


def test_load_opt_state():
    """Linen trains, nnx resumes; past ten layers, with gradients too small to clip."""
    rows, din, num_layers, features, seed, dtype, _ = DEEP
    module, variables, model = pair(din, num_layers, features, seed, dtype, scale=0.1)
    start = optimizers(module, variables, model)
    small = batches(rows, din, features, seed, dtype, scale=0.1)
    arguments = linen, nnx_side
    state, _ = train_steps.assert_same_training(
        *arguments, start[0], model, start[1], small, steps=3
    )

    checkpoint = jax.tree.map(np.asarray, state)
    variables = {"params": checkpoint.params}
    resumed = mapping.to_nnx(variables, create_model(din, num_layers, features))
    fresh, optimizer = optimizers(module, variables, resumed)
    saved = int(checkpoint.step), checkpoint.opt_state
    loaded = linen.load_opt_state(fresh, *saved)
    nnx_side.load_opt_state(optimizer, *saved)

    train_steps.assert_same_state(loaded, resumed, optimizer)
    train_steps.assert_same_training(
        *arguments, loaded, resumed, optimizer, small, steps=2
    )
    assert optimizer.step.dtype == jnp.uint32


def test_last_layer():
    module, variables, model = pair(3, 2, 3)
    state, optimizer = last_layer_optimizers(module, variables, model)
    random_batches = batches(5, 3, 3)
    for _ in range(4):
        x, y = next(random_batches)
        state, loss = linen.train_step(state, x, y)
        parity.assert_equal(loss, nnx_side.train_step(model, optimizer, x, y))
        ours = mapping.to_linen(model, variables)["params"]
        parity.assert_equal(state.params, ours, check="state after a step")
        parity.assert_equal(
            jax.tree.leaves(state.opt_state),
            jax.tree.leaves(optimizer.opt_state),
            check="optimizer state after a step",
        )
    trained = [
        name
        for name, layer in variables["params"].items()
        if not np.array_equal(layer["kernel"], state.params[name]["kernel"])
    ]
    assert trained == ["layers_1"]


@pytest.mark.parametrize("side", [linen, nnx_side])
def test_the_warm_up_takes_a_tenth_of_the_steps(side):
    """With a constant gradient an update of Adam is the rate."""
    tx, one = side.create_tx(0.1, 54), jnp.float32(1)
    _, updates = jax.lax.scan(
        lambda state, _: tx.update(one, state)[::-1], tx.init(one), length=54
    )
    assert np.argmax(-updates) == 5


@jax.jit
@jax.value_and_grad
def plain_loss(layers, x, y):
    for i, (kernel, bias) in enumerate(layers):
        x = jnp.where(x > 0, x, 0) if i else x  # maximum has slope 1/2 at zero
        x = jnp.dot(x, kernel) + bias[None]
    return jnp.mean((x - y) ** 2)


def plain_losses(layers, x, y, num_steps, peak):
    """Adam, the clipping and the schedule by their formulas, in numpy."""
    leaves, treedef = jax.tree.flatten(layers)
    moments = [(np.zeros(leaf.shape), np.zeros(leaf.shape)) for leaf in leaves]
    warmup, losses = num_steps // 10, []
    for t in range(num_steps):
        loss, grads = plain_loss(jax.tree.unflatten(treedef, leaves), x, y)
        losses.append(loss)
        grads = [np.asarray(grad, float) for grad in jax.tree.leaves(grads)]
        norm = sum((grad**2).sum() for grad in grads) ** 0.5
        grads = [grad / max(norm, 1) for grad in grads]
        moments = [
            (0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2)
            for (m, v), g in zip(moments, grads)
        ]
        cosine = (1 + np.cos(np.pi * (t - warmup) / (num_steps - warmup))) / 2
        rate = peak * (t / warmup if t < warmup else cosine)
        scales = 1 - 0.9 ** (t + 1), 1 - 0.999 ** (t + 1)
        leaves = [
            np.float32(leaf - rate * m / scales[0] / ((v / scales[1]) ** 0.5 + 1e-8))
            for leaf, (m, v) in zip(leaves, moments)
        ]
    return np.stack(losses)


@pytest.mark.parametrize(
    ("rows", "din", "num_layers", "features", "num_steps"), ENTRY_CASES
)
def test_adam_losses(rows, din, num_layers, features, num_steps, nnx_mode):
    rng = np.random.default_rng([rows, nnx_mode == "tree"])
    module = linen.MLP(num_layers, features)
    target = train_steps.batch_shapes(module, din)
    for _ in range(8):
        seed = rng.integers(0, 2**31)
        x = rng.standard_normal((rows, din)) * 10.0 ** rng.integers(-2, 2)
        x = x.astype(rng.choice([np.float32, np.float64, np.int32]))
        y = rng.standard_normal((rows, features)) * 10.0 ** rng.integers(-1, 2)
        numbers = (in_any_form(rng, n) for n in (num_layers, num_steps))
        arguments = in_any_form(rng, seed), x, y, *numbers, np.float32(SCHEDULE[0])
        model = create_model(din, num_layers, features, int(seed))
        variables = mapping.to_linen(model, target)

        losses = nnx_side.adam_losses(*arguments)

        parity.assert_equal(linen.adam_losses(*arguments, variables=variables), losses)
        plain = plain_losses(
            [
                (np.asarray(layer.kernel), np.asarray(layer.bias))
                for layer in model.layers
            ],
            x.astype(np.float32),
            y.astype(np.float32),
            num_steps,
            SCHEDULE[0],
        )
        np.testing.assert_allclose(losses, plain, rtol=1e-3)  # float32 through 12 steps


def test_linen_entry_from_its_own_seed():
    x, y = next(batches(1, 1, 1))
    variables = linen.MLP(1, 1).init(jax.random.key(7), x)
    parity.assert_equal(
        linen.adam_losses(7, x, y, 1, 1, 0.1, variables=variables),
        linen.adam_losses(7, x, y, 1, 1, 0.1),
    )


def test_pitfall_wrt_is_required():
    """`` TypeError: Missing required argument `wrt`. ``

    `nnx.Optimizer(model, tx)` raises this since flax 0.11, and so does `wrt` given by
    position. Write `wrt=nnx.Param`.
    """
    with pytest.raises(TypeError, match="Missing required argument `wrt`"):
        nnx.Optimizer(create_model(), optax.adam(0.1))


def test_pitfall_update_takes_the_model_too():
    """`` TypeError: Missing required argument `grads`. ``

    `optimizer.update(grads)` was the call before flax 0.11. It is now
    `optimizer.update(model, grads)`.
    """
    model = create_model()
    optimizer = nnx_side.create_optimizer(model, optax.adam(0.1))
    with pytest.raises(TypeError, match="Missing required argument `grads`"):
        optimizer.update(nnx.state(model, nnx.Param))


def test_pitfall_the_optimizer_holds_no_model():
    """`AttributeError: Optimizer does not have attribute 'model'`

    The optimizer no longer holds the model. Pass both to the step.
    """
    optimizer = nnx_side.create_optimizer(create_model(), optax.adam(0.1))
    with pytest.raises(AttributeError, match="does not have attribute 'model'"):
        _ = optimizer.model


def test_pitfall_the_step_is_unsigned():
    """`optimizer.step` is unsigned

    `optimizer.step[...] - 10` after one step is 4294967287, where the int32 of
    `TrainState` gives -9. Compare steps instead of subtracting them.
    """
    module, variables, model = pair(3, 2, 3)
    state, optimizer = optimizers(module, variables, model)
    x, y = next(batches(5, 3, 3))
    state, _ = linen.train_step(state, x, y)
    nnx_side.train_step(model, optimizer, x, y)
    assert (state.step.dtype, optimizer.step.dtype) == (jnp.int32, jnp.uint32)
    assert (int(state.step - 10), int(optimizer.step[...] - 10)) == (-9, 2**32 - 9)


def test_pitfall_the_schedule_does_not_follow_the_step():
    """The schedule does not follow `optimizer.step`

    A schedule counts in the optax state. With `optimizer.step` set to 10 and nothing
    else, the next update is still that of step 0, here at learning rate zero. Load the
    optax state, as above.
    """
    model = create_model()
    optimizer = nnx_side.create_optimizer(model, nnx_side.create_tx(*SCHEDULE))
    optimizer.step[...] = 10
    kernel = model.layers[0].kernel[...]
    nnx_side.train_step(model, optimizer, *next(batches(5, 3, 3)))
    parity.assert_equal(kernel, model.layers[0].kernel[...])  # rate zero: step 0
    _, (_, schedule) = optimizer.opt_state
    assert (int(schedule.count[...]), int(optimizer.step[...])) == (1, 11)


def test_pitfall_a_layer_of_another_shape_fails_at_the_next_update():
    """`TypeError: add got incompatible shapes for broadcasting`

    A layer was replaced by one of another shape after the optimizer was made. Nothing
    is checked until the next update, where the old moments meet the new gradients.
    Replace layers first, then make the optimizer.
    """
    model = create_model()
    optimizer = nnx_side.create_optimizer(model, nnx_side.create_tx(*SCHEDULE))
    model.layers[-1] = nnx.Linear(3, 2, rngs=nnx.Rngs(1))
    with pytest.raises(TypeError, match="add got incompatible shapes for broadcasting"):
        nnx_side.train_step(model, optimizer, *next(batches(5, 3, 2)))


def test_pitfall_a_layer_of_the_same_shape_takes_over_the_moments():
    """A new layer of the same shape takes over the old moments

    The optimizer knows a Param by its path. A layer that replaces another one is moved
    by the gradients of the old one, at first.
    """
    model = create_model()
    optimizer = nnx_side.create_optimizer(model, nnx_side.create_tx(*SCHEDULE))
    nnx_side.train_step(model, optimizer, *next(batches(5, 3, 3)))
    model.layers[-1] = nnx.Linear(3, 3, rngs=nnx.Rngs(1))
    _, (adam, _) = optimizer.opt_state
    moment = adam.mu["layers"][1]["kernel"][...]
    assert moment.any()
    zero = jnp.zeros((5, 3))
    model.layers[-1].bias[...] = jnp.zeros(3)
    nnx_side.train_step(model, optimizer, zero, zero)  # the loss and gradients are zero
    parity.assert_equal(0.9 * moment, adam.mu["layers"][1]["kernel"][...])
    assert (
        model.layers[-1].kernel[...] != nnx.Linear(3, 3, rngs=nnx.Rngs(1)).kernel
    ).any()


def test_pitfall_in_tree_mode_the_gradients_are_a_module(nnx_mode):
    """In tree mode the gradients are a module

    `grads["layers"]` raises `TypeError: 'MLP' object is not subscriptable`. In graph
    mode they are an `nnx.State`. `nnx.state(grads, nnx.Param)` is one in both modes,
    and `optimizer.update` takes either.
    """
    model = create_model()
    grads = nnx.grad(lambda model: model(jnp.ones((5, 3))).sum())(model)
    assert isinstance(nnx.state(grads, nnx.Param), nnx.State)  # in both modes
    if nnx_mode == "graph":
        assert isinstance(grads, nnx.State)
    else:
        with pytest.raises(TypeError, match="'MLP' object is not subscriptable"):
            grads["layers"]


def test_pitfall_jax_jit_trains_nothing():
    """Under `jax.jit` the step trains nothing

    `jax.jit` takes model and optimizer as pytrees, updates copies of them and drops
    them. The loss is right and never falls. Use `nnx.jit`, or return both.
    """
    model = create_model()
    optimizer = nnx_side.create_optimizer(model, optax.adam(0.1))
    before = jax.tree.map(jnp.copy, nnx.state(model))
    train_step = jax.jit(nnx_side.train_step.__wrapped__)
    assert train_step(model, optimizer, *next(batches(5, 3, 3))) > 0
    parity.assert_equal(before, nnx.state(model))
    assert optimizer.step[...] == 0


def test_pitfall_an_optimizer_that_is_closed_over_cannot_be_updated():
    """`TraceContextError: Cannot mutate OptArray from a different trace level`

    The step closes over the optimizer. Make it an argument.
    """
    model = create_model()
    optimizer = nnx_side.create_optimizer(model, optax.adam(0.1))

    @nnx.jit
    def train_step(model, x, y):
        return nnx_side.train_step.__wrapped__(model, optimizer, x, y)

    with pytest.raises(TraceContextError, match="Cannot mutate OptArray from a differ"):
        train_step(model, *next(batches(5, 3, 3)))


def test_pitfall_a_new_transformation_compiles_the_step_again():
    """A new transformation compiles the step again

    Two calls of `optax.adam(0.1)` are two transformations to jax, on both sides. Make
    one and keep it.
    """
    module, model, traces = linen.MLP(1, 1), create_model(), []

    @nnx.jit
    def nnx_step(model, optimizer):
        traces.append("nnx")

    @jax.jit
    def linen_step(state):
        traces.append("linen")

    for tx in (optax.adam(0.1), optax.adam(0.1), *[nnx_side.create_tx(*SCHEDULE)] * 2):
        nnx_step(model, nnx_side.create_optimizer(model, tx))
        linen_step(linen.create_optimizer(module, {}, tx))
    assert [traces.count(side) for side in ("nnx", "linen")] == [3, 3]


def test_pitfall_an_equal_linen_module_compiles_the_step_again():
    """An equal Linen module compiles the step again

    A `TrainState` made with the `apply` of another module, if an equal one, is compiled
    again. The nnx step is compiled once: it compares the structure of the model.
    """
    traces = []

    def record(name):
        traces.append(name)

    tx = nnx_side.create_tx(*SCHEDULE)
    nnx_step = nnx.jit(lambda model, optimizer: record("nnx"))
    linen_step = jax.jit(lambda state: record("linen"))
    for _ in range(2):
        model = create_model()
        nnx_step(model, nnx_side.create_optimizer(model, tx))
        linen_step(linen.create_optimizer(linen.MLP.__wrapped__(1, 1), {}, tx))
    assert [traces.count(side) for side in ("nnx", "linen")] == [1, 2]


def test_pitfall_the_mode_is_that_of_the_decoration():
    """A step decorated in graph mode stays in graph mode

    `nnx.jit` takes the mode in which it decorates, not that of the call. A step
    decorated in graph mode takes a Param that is in two places, also when tree mode is
    set; one decorated in tree mode raises `ValueError: Duplicate Param`, also in graph
    mode. Set the mode before you import the step.
    """
    model = create_model()
    model.layers[1].kernel = model.layers[0].kernel
    with nnx.set_graph_mode(True):
        in_graph = nnx.jit(lambda model: model.layers[0].bias.sum())
    with nnx.set_graph_mode(False):
        in_tree = nnx.jit(lambda model: model.layers[0].bias.sum())
        assert in_graph(model) == 0
    with nnx.set_graph_mode(True), pytest.raises(ValueError, match="Duplicate Param"):
        in_tree(model)


def test_pitfall_past_ten_layers_the_clip_norm_rounds_otherwise():
    """Past ten layers the clip norm rounds otherwise

    The norm adds up the leaves in their order. Linen sorts `layers_10` before
    `layers_2` and nnx counts, so with twelve layers the two norms differ in the last
    bits, and then all that is clipped. Where nothing is clipped both sides stay
    bit-identical. The parity tests take twelve layers too, which is why the verdict of
    this page is not `exact`.
    """
    rows, din, num_layers, features, seed, dtype, _ = DEEP
    module, variables, model = pair(din, num_layers, features, seed, dtype)
    state, optimizer = optimizers(module, variables, model)
    state, _ = train_steps.assert_same_training(
        linen,
        nnx_side,
        state,
        model,
        optimizer,
        batches(rows, din, features, seed, dtype),
        tolerance=CLIPPING_ROUNDS,
    )
    ours = mapping.to_linen(model, {"params": state.params})["params"]
    same = jax.tree.map(np.array_equal, state.params, ours)
    assert not all(jax.tree.leaves(same))


def test_pitfall_outside_wrt_nothing_counts_for_the_clip_norm():
    """Outside `wrt` nothing counts for the clip norm

    `optimizer.update` takes the gradients of the whole model and drops those outside
    `wrt` before it clips. In Linen, with `optax.masked` after the clipping, frozen
    layers count for the norm, and the trained one moves less.
    """
    model = create_model(num_layers=3)
    x, y = next(batches(5, 3, 3))
    grads = nnx.state(nnx.grad(lambda m: jnp.mean((m(x) - y) ** 2))(model), nnx.Param)
    tx = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    optimizer = nnx_side.create_last_layer_optimizer(model, tx)
    updates = optimizer.update(model, grads)
    assert [*updates["layers"]] == [2]
    np.testing.assert_allclose(optax.tree.norm(updates), 1e-3, rtol=1e-5)

    params = linen.MLP(3, 3).init(jax.random.key(0), x)["params"]
    masked = optax.masked(
        optax.set_to_zero(), {**dict.fromkeys(params, True), "layers_2": False}
    )
    tx = optax.chain(optax.clip_by_global_norm(1e-3), masked)
    assert optax.tree.norm(tx.update(params, tx.init(params))[0]) < 0.9e-3
