import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import unfreeze

from linen2nnx import mapping, parity
from linen_impl.randomness import dropout_same_mask as linen
from nnx_impl.randomness import dropout_same_mask as nnx_side
from parity_tests.entry_inputs import entry_inputs
from parity_tests.random_pair import random_pair, variable_shapes

CASES = [  # din, features, rate, seed, dtype, jit
    (1, 33, 0.9, 0, jnp.float32, False),
    (5, 33, 0.1, 1, jnp.bfloat16, True),
]
ONES = np.ones(64, np.float32)  # of 64 values two masks are hardly the same
KEY = jax.random.key(0)


def create_model(din, features, rate, seed=0):
    return nnx_side.Model(din, features, rate, rngs=nnx.Rngs(seed))


def pair(din, features, rate, seed=0, dtype=jnp.float32):
    """Both sides, an input and a key."""
    module = linen.Model(features, rate)
    variables, model, x = random_pair(
        module, lambda: create_model(din, features, rate), din, seed, dtype
    )
    return module, unfreeze(variables), model, x, jax.random.key(seed + 50)


def linen_dropout(rngs, rate=0.5):
    return nn.Dropout(rate, deterministic=False).apply({}, ONES, rngs=rngs)


def same(left, right):
    return bool(jnp.array_equal(left, right))


@pytest.mark.parametrize(("din", "features", "rate", "seed", "dtype", "jit"), CASES)
def test_model(din, features, rate, seed, dtype, jit):
    module, variables, model, x, key = pair(din, features, rate, seed, dtype)
    parity.assert_parity(module, variables, model, x, key, jit=jit)


@pytest.mark.parametrize(("din", "features", "rate", "seed", "dtype", "jit"), CASES)
def test_streams_of_their_own_with_the_same_keys(din, features, rate, seed, dtype, jit):
    """Without a key each side draws its own, which the comparison makes the same."""
    module, variables, model, x, _ = pair(din, features, rate, seed, dtype)
    parity.assert_parity(module, variables, model, x, randomness="same keys", jit=jit)


@pytest.mark.parametrize(("din", "features", "rate", "seed", "dtype", "jit"), CASES)
def test_linen_run(din, features, rate, seed, dtype, jit):
    module, variables, model, x, key = pair(din, features, rate, seed, dtype)
    parity.assert_parity(
        lambda variables, x, key: linen.linen_run(module, variables, x, key),
        variables,
        model,
        x,
        key,
        call=lambda model, x, key: nnx_side.linen_run(model, module, x, key),
        jit=jit,
        checks=["outputs", "state"],
    )


@pytest.mark.parametrize(("din", "features", "rate", "seed", "dtype", "jit"), CASES)
def test_apply_mask(din, features, rate, seed, dtype, jit):
    module, variables, model, x, key = pair(din, features, rate, seed, dtype)
    mask = jax.random.bernoulli(key, 1 - rate, (features,))
    parity.assert_parity(
        lambda variables, x, mask: linen.apply_mask(module, variables, x, mask),
        variables,
        model,
        x,
        mask,
        call=nnx_side.apply_mask,
        jit=jit,
    )
    parity.assert_equal(model(x, key), nnx_side.apply_mask(model, x, mask))


@pytest.mark.parametrize(("din", "features", "rate", "seed", "dtype", "jit"), CASES)
def test_run_steps(din, features, rate, seed, dtype, jit):
    module, variables, model, x, key = pair(din, features, rate, seed, dtype)
    parity.assert_parity(
        lambda variables, x, key: linen.run_steps(module, variables, x, key, 3),
        variables,
        model,
        x,
        key,
        call=lambda model, x, key: nnx_side.run_steps(model, x, key, 3),
        jit=jit,
        checks=["outputs", "state"],
    )


def test_a_linen_layer_that_is_called_twice_draws_a_second_key():
    module, variables, model, x, key = pair(1, 33, 0.5)
    bound = module.bind({}, rngs={"dropout": key})
    keys = [bound.dropout.make_rng("dropout") for _ in range(2)]
    outputs = module.apply(
        variables, x, rngs={"dropout": key}, method=lambda m, x: [m(x), m(x)]
    )
    parity.assert_equal(outputs, [model(x, key) for key in keys])
    assert not same(*outputs)


def test_each_step_has_a_mask_of_its_own():
    _, _, model, x, key = pair(1, 33, 0.5)
    first, second, third = (out == 0 for out in nnx_side.run_steps(model, x, key, 3))
    assert not same(first, second)
    assert not same(first, third)
    assert not same(second, third)


def test_dropout_same_mask(nnx_mode):
    for rng, seed, x, features in entry_inputs(nnx_mode):
        rate = float(rng.choice([0, 0.1, 0.5, 0.9, rng.uniform()]))
        given = rng.choice([float, np.float64, np.asarray])(rate)
        model = create_model(len(x), int(features), rate, int(seed))
        shapes = variable_shapes(linen.Model(int(features), 0.5), len(x))
        variables = mapping.to_linen(model, shapes)

        output = nnx_side.dropout_same_mask(seed, x, features, given)

        parity.assert_equal(
            linen.dropout_same_mask(seed, x, features, given, variables=variables),
            output,
        )
        key = jax.random.key(int(seed) + 1000)
        kept = jax.random.bernoulli(key, 1 - rate, (int(features),))
        y = jnp.dot(jnp.asarray(x, jnp.float32), model.linear.kernel[...])
        y = y + model.linear.bias[...]
        parity.assert_equal(jnp.where(kept, y / (1 - rate), 0), output)


def test_linen_entry_from_its_own_seed():
    x = jnp.ones(1)
    module = linen.Model(33, 0.5)
    variables = module.init(jax.random.key(7), x)
    expected = module.apply(variables, x, jax.random.key(1007))
    parity.assert_equal(expected, linen.dropout_same_mask(7, x, 33, 0.5))


def test_pitfall_the_same_seed_gives_another_mask():
    """The same seed gives another mask

    `rngs={"dropout": jax.random.key(0)}` in Linen and `nnx.Rngs(0)`,
    `nnx.Rngs(dropout=jax.random.key(0))` or the key itself in nnx draw different masks.
    """
    for seed in range(5):
        key = jax.random.key(seed)
        ours = linen_dropout({"dropout": key})
        for rngs in (nnx.Rngs(seed), nnx.Rngs(dropout=key)):
            assert not same(ours, nnx.Dropout(0.5, rngs=rngs)(ONES))
            assert not same(ours, nnx.Dropout(0.5)(ONES, rngs=rngs))
        assert not same(ours, nnx.Dropout(0.5)(ONES, rngs=key))


def test_pitfall_nnx_draws_another_mask_at_every_call():
    """nnx draws another mask at every call

    Each draw advances the stream that the layer holds. In Linen the same key gives the
    same mask until you change the key.
    """
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    assert not same(dropout(ONES), dropout(ONES))
    assert same(linen_dropout({"dropout": KEY}), linen_dropout({"dropout": KEY}))


def test_pitfall_jax_jit_repeats_the_mask():
    """`jax.jit` repeats the mask

    A model given to a `jax.jit` function comes in as a copy, and the advanced stream
    does not come out: every call draws the same mask. `nnx.jit` brings it out.
    """
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    repeated = jax.jit(lambda dropout: dropout(ONES))
    assert same(repeated(dropout), repeated(dropout))
    advanced = nnx.jit(lambda dropout: dropout(ONES))
    assert not same(advanced(dropout), advanced(dropout))


def test_pitfall_a_stream_of_the_layer_is_not_the_stream_that_made_it():
    """The layer's own stream is a fork

    A layer made with `rngs` does not draw what `rngs` would: it forks a stream when it
    is made, which itself takes a key. Its first mask has the key `fold_in(fold_in(key,
    0), 0)`, and not `fold_in(key, 0)`.
    """
    rngs = nnx.Rngs(dropout=0)
    own = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=0))(ONES)
    assert not same(own, nnx.Dropout(0.5)(ONES, rngs=rngs))
    fork = jax.random.fold_in(jax.random.key(0), 0)  # taken when the layer is made
    first = jax.random.fold_in(fork, 0)  # taken at its first call
    assert same(own, nnx.Dropout(0.5)(ONES, rngs=first))


def test_pitfall_a_new_nnx_model_drops():
    """A new nnx model drops

    It is in train mode. `model.eval()` turns dropout off, and a key passed to the call
    does not turn it on again.
    """
    model = create_model(1, 33, 0.5)
    x = jnp.ones(1)
    assert not same(model(x), model.linear(x))
    model.eval()
    assert same(model(x), model.linear(x))
    assert same(model(x, KEY), model.linear(x))  # a key does not turn it on
    model.train()
    assert not same(model(x), model.linear(x))


def test_pitfall_linen_must_be_told_whether_to_drop():
    """Linen: `ValueError: Parameter "deterministic" must be passed to the constructor
    or at call time.`

    Linen has no mode of the model, so each call says whether it drops.
    """
    with pytest.raises(ValueError, match='Parameter "deterministic" must be passed'):
        nn.Dropout(0.5).apply({}, ONES, rngs={"dropout": KEY})


def test_pitfall_a_clone_draws_the_same_masks():
    """A clone draws the same masks

    `nnx.clone` copies the streams, so that original and clone go on alike. Give the
    clone other keys with `nnx.reseed`.
    """
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    clone = nnx.clone(dropout)
    for _ in range(3):
        assert same(dropout(ONES), clone(ONES))
    nnx.reseed(clone, default=1)
    assert not same(dropout(ONES), clone(ONES))


def test_pitfall_linen_takes_the_params_stream_where_dropout_has_none():
    """Linen: `InvalidRngError`, `needs PRNG for "dropout"`

    Without a key for `dropout`, Linen takes the one for `params`, silently, and without
    that it raises this error. A key under the name `default` is no help.
    """
    assert same(linen_dropout({"params": KEY}), linen_dropout({"dropout": KEY}))
    with pytest.raises(flax.errors.InvalidRngError, match='needs PRNG for "dropout"'):
        linen_dropout({"default": KEY})


def test_pitfall_nnx_takes_the_default_stream_where_dropout_has_none():
    """`KeyError: "No RngStream named 'dropout' found in Rngs."`

    nnx takes the `default` stream where there is none for `dropout`, and never the one
    for `params`. The error comes when the layer is made.
    """
    default, named = nnx.Rngs(0), nnx.Rngs(dropout=0)
    assert same(
        nnx.Dropout(0.5, rngs=default)(ONES), nnx.Dropout(0.5, rngs=named)(ONES)
    )
    with pytest.raises(KeyError, match="No RngStream named 'dropout' found"):
        nnx.Dropout(0.5, rngs=nnx.Rngs(params=0))


def test_pitfall_an_nnx_dropout_without_a_stream():
    """`ValueError`: no `rngs` argument was provided to Dropout

    A layer made without `rngs` has no stream, so each call has to pass a key.
    """
    with pytest.raises(ValueError, match="no `rngs` argument was provided to Dropout"):
        nnx.Dropout(0.5)(ONES)


def test_pitfall_making_a_dropout_shifts_the_layers_made_after_it():
    """Making a dropout layer shifts the layers made after it

    Its fork takes a key of the `default` stream, so every later layer has other initial
    values. With `nnx.Rngs(params=0, dropout=1)` the two do not meet.
    """

    def kernels(rngs):
        plain = nnx.Linear(5, 5, rngs=nnx.Rngs(0)).kernel[...]
        nnx.Dropout(0.5, rngs=rngs)
        return plain, nnx.Linear(5, 5, rngs=rngs).kernel[...]

    assert not same(*kernels(nnx.Rngs(0)))
    assert same(*kernels(nnx.Rngs(params=0, dropout=1)))


def test_pitfall_a_rate_is_not_checked():
    """The rate is not checked

    Neither side refuses a rate outside 0 to 1. From 1 on, and so for a percentage, the
    output is zeros; a rate of -0.5 keeps everything and divides it by 1.5.
    """
    for rate in (1.0, 1.5, 50.0):
        parity.assert_equal(0 * ONES, linen_dropout({"dropout": KEY}, rate))
        parity.assert_equal(0 * ONES, nnx.Dropout(rate)(jnp.array(ONES), rngs=KEY))
    scaled = ONES / 1.5
    parity.assert_equal(scaled, linen_dropout({"dropout": KEY}, -0.5))
    parity.assert_equal(scaled, nnx.Dropout(-0.5)(jnp.array(ONES), rngs=KEY))


def test_pitfall_reseed_of_a_stream_that_is_the_default_one():
    """`nnx.reseed(model, dropout=5)` may do nothing

    A layer made from `nnx.Rngs(0)` holds a stream named `default`. A name that no
    stream has is ignored; `nnx.reseed(model, default=5)` reseeds it.
    """
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    untouched = nnx.clone(dropout)
    nnx.reseed(dropout, dropout=5)
    assert same(dropout(ONES), untouched(ONES))
    nnx.reseed(dropout, default=5)
    assert not same(dropout(ONES), untouched(ONES))
