import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict, freeze
from flax.errors import TraceContextError

from linen2nnx import mapping, parity
from linen2nnx.parity import randomness
from linen_impl.training import jit_train_step as linen
from nnx_impl.training import jit_train_step as nnx_side
from parity_tests import train_steps

RATE = 0.03  # of every test: it is a constant of the step, which is compiled for it
ADAM = optax.adam(RATE)
CASES = [  # din, num_layers, features, seed
    (33, 1, 3, 0),  # those of `Pair`
    (1, 11, 4, 2),
]
KEY = jax.random.key(5)


@pytest.fixture(autouse=True)
def _promotion(strict):
    """JAX not at its strictest: optax raises a float to an integer power."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def create_model(din, num_layers, features, seed=0):
    rngs = nnx.Rngs(params=seed, dropout=1)
    return nnx_side.MLP(din=din, num_layers=num_layers, features=features, rngs=rngs)


class Pair:
    """Both sides, random in every leaf and the same, with batches to train on."""

    def __init__(self, din=33, num_layers=1, features=3, seed=0):
        self.module = linen.MLP(num_layers, features)
        self.variables, self.model = train_steps.random_pair(
            self.module, lambda: create_model(din, num_layers, features), din, seed
        )
        batches = train_steps.random_batches(5, din, features, seed)
        self.batches = [next(batches) for _ in range(4)]
        self.optimizer = nnx.Optimizer(self.model, ADAM, wrt=nnx.Param)

    @property
    def trained(self):
        return self.model, self.optimizer

    def state(self):
        return linen.TrainState.create(
            apply_fn=self.module.apply, tx=ADAM, key=KEY, **self.variables
        )


@pytest.mark.parametrize(("din", "num_layers", "features", "seed"), CASES)
def test_train(din, num_layers, features, seed):
    """All that a step keeps, but for the keys: they are made the same on both sides."""
    pair = Pair(din, num_layers, features, seed)
    with randomness.same_keys(KEY):
        state, losses = linen.train(pair.state(), pair.batches)
    with randomness.same_keys(KEY):
        nnx_losses = nnx_side.train(*pair.trained, pair.batches)
    parity.assert_equal(losses, nnx_losses)
    train_steps.assert_same_state(state, *pair.trained)
    assert len(set(losses.tolist())) == len(pair.batches)


def test_model():
    pair = Pair(1, 2, 1, seed=3)
    parity.assert_parity(
        pair.module,
        pair.variables,
        pair.model,
        pair.batches[0][0],
        randomness="same keys",
        optimizer=ADAM,
        jit=True,
    )


def idioms(mode):
    yield nnx_side.train_by_nnx_jit
    yield nnx_side.train_by_jit_partial
    if mode == "graph":
        yield nnx_side.train_by_cached_partial


def test_the_idioms_compute_the_same(nnx_mode):
    """Also the keys and counts of the dropout, which differ from Linen's."""
    pair = Pair()
    expected = nnx_side.train(*pair.trained, pair.batches)
    kept = nnx.to_pure_dict(nnx.state(pair.trained))
    assert pair.model.dropout_rngs.count[...] == len(pair.batches)
    for idiom in idioms(nnx_mode):
        other = Pair()
        losses = idiom(*other.trained, other.batches)
        parity.assert_equal(expected, jnp.stack(losses))
        parity.assert_equal(kept, nnx.to_pure_dict(nnx.state(other.trained)))


def with_same_keys(train):
    def train_with_same_keys(*arguments):
        with randomness.same_keys(KEY):
            return train(*arguments)

    return train_with_same_keys


def test_jit_train_step(nnx_mode, monkeypatch):
    for twin in (linen, nnx_side):
        monkeypatch.setattr(twin, "train", with_same_keys(twin.train))
    rng = np.random.default_rng(["graph", "tree"].index(nnx_mode))
    for _ in range(2):
        seed = rng.integers(0, 2**31)
        x = rng.standard_normal((5, 33)).astype(rng.choice([np.float32, np.float64]))
        y = rng.standard_normal((5, 3))
        arguments = seed, x, y, rng.choice([1, 1.0, np.int64(1)]), 4, RATE
        model = create_model(33, 1, 3, seed=int(seed))
        shapes = train_steps.batch_shapes(linen.MLP(1, 3), din=33)
        variables = mapping.to_linen(model, shapes)
        parity.assert_equal(
            linen.jit_train_step(*arguments, variables=variables),
            nnx_side.jit_train_step(*arguments),
        )


def test_nnx_entry_seeds_the_dropout_too(monkeypatch):
    models = []
    monkeypatch.setattr(
        nnx_side, "train", lambda model, *_: models.append(model) or jnp.zeros(4)
    )
    nnx_side.jit_train_step(7, jnp.ones((5, 3)), jnp.ones((5, 3)), 1, 4, RATE)
    rngs = nnx.Rngs(params=7, dropout=8)
    expected = nnx_side.MLP(din=3, num_layers=1, features=3, rngs=rngs)
    parity.assert_equal(nnx.state(expected), nnx.state(models[0]))


def test_linen_entry_from_its_own_seed():
    x, y = jnp.eye(5, 33), jnp.ones((5, 3))
    module = linen.MLP(1, 3)
    state = linen.TrainState.create(
        apply_fn=module.apply,
        tx=ADAM,
        key=jax.random.key(8),
        **module.init(jax.random.key(7), x),
    )
    expected = linen.train(state, [(x, y)] * 3)[1]
    parity.assert_equal(expected, linen.jit_train_step(7, x, y, 1, 3, RATE))


def test_pitfall_a_frozen_dict_of_statistics_traces_twice():
    """Linen: a `FrozenDict` of statistics traces twice

    The statistics that `apply` returns are a plain dict. Where the first state holds a
    `FrozenDict`, the second one is of another structure, and the step is traced and
    compiled again.
    """
    pair, traces = Pair(), []

    @jax.jit
    def train_step(state, x, y):
        traces.append(type(state.batch_stats))
        return linen.train_step(state, x, y)

    state = pair.state()
    state = state.replace(batch_stats=freeze(state.batch_stats))
    for _ in range(3):
        state, _ = train_step(state, *pair.batches[0])
    assert traces == [FrozenDict, dict]


def test_pitfall_jax_jit_of_the_modules_loses_every_update():
    """`jax.jit` of the modules loses every update

    `jax.jit(train_step)(model, optimizer, x, y)` runs and returns a loss. Its modules
    are copies: parameters, statistics and moments stay as they were, and so does the
    loss.
    """
    pair = Pair()
    before = nnx.to_pure_dict(nnx.state(pair.trained))
    step = jax.jit(nnx_side.train_step)
    first, second = (step(*pair.trained, *pair.batches[0]) for _ in range(2))
    assert first == second
    parity.assert_equal(before, nnx.to_pure_dict(nnx.state(pair.trained)))


def test_pitfall_a_model_that_jax_jit_closes_over(nnx_mode):
    """`ValueError: Cannot extract graph node from different trace level`

    The function under `jax.jit` closes over the model instead of taking its state. In
    tree mode it is a `TraceContextError`: `Cannot mutate BatchStat from a different
    trace level`.
    """
    pair = Pair()
    step = jax.jit(lambda x, y: nnx_side.train_step(*pair.trained, x, y))
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
    pair = Pair()
    bias = pair.model.head.bias[...]
    graphdef, state = nnx.split(pair.trained)
    state = nnx.to_pure_dict(state)

    @jax.jit
    def step(state, x, y):
        trained = nnx.merge(graphdef, state)
        loss = nnx_side.train_step(*trained, x, y)
        return nnx.to_pure_dict(nnx.state(trained)), loss

    state, _ = step(state, *pair.batches[0])
    np.testing.assert_array_equal(pair.model.head.bias[...], bias)
    nnx.update(pair.trained, state)
    assert (pair.model.head.bias[...] != bias).all()


def test_pitfall_donating_the_state_deletes_the_arrays_of_the_model():
    """`RuntimeError: Array has been deleted`

    The state shares its arrays with the model that it was split from. Donated, with
    `donate_argnums=0`, they are gone from the model too, until `nnx.update` gives it
    new ones.
    """
    pair = Pair()
    state = nnx.to_pure_dict(nnx.state(pair.trained))
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
    pair = Pair()
    if nnx_mode == "graph":
        step = nnx.cached_partial(nnx.jit(nnx_side.train_step), *pair.trained)
    else:
        step = nnx.jit_partial(nnx_side.train_step, *pair.trained, graph=False)
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
    pair = Pair()
    if nnx_mode == "graph":
        nnx.cached_partial(nnx.jit(nnx_side.train_step), *pair.trained)
        return
    with pytest.raises(ValueError, match="cached_partial is a graph-mode-only API"):
        nnx.cached_partial(nnx.jit(nnx_side.train_step), *pair.trained)


def test_pitfall_a_python_number_that_changes_traces_again():
    """A Python number that changes traces again

    `model.epoch = epoch` is part of the graphdef. Each new value traces and compiles
    the step once more. Keep it in a Variable, or outside of the model.
    """
    model, traces = create_model(3, 1, 3), []

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
    model = create_model(1, 3, 1)
    assert len(jax.tree.leaves(nnx.state(model, nnx.RngState))) == 2


def test_pitfall_nnx_grad_of_the_whole_model(nnx_mode):
    """`TypeError: grad requires real- or complex-valued inputs ... got uint32`

    In tree mode `nnx.grad(loss_fn)(model)` differentiates every leaf, and the count of
    a dropout stream is a whole number. Split the Params off, as the step does. In graph
    mode it differentiates the Params only.
    """
    pair = Pair()
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
