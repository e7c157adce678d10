"""Parity, cost and pitfalls of `randomness/dropout_same_mask`."""

from functools import partial

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linen2nnx import Pair, parity
from linen2nnx.cost.forward import Forward
from linen2nnx.cost.step import plain_dense, plain_dropout
from linen2nnx.suite.problem import Compare, Mistake, Problem
from linen_impl.randomness import dropout_same_mask as linen
from nnx_impl.randomness import dropout_same_mask as nnx_side

EXPECTED = [
    {
        "flax": "<0.11.0",
        "modes": ["graph"],
        "verdict": "fails",
        "cause": "nnx.Dropout takes a key as rngs since 0.11.0",
    },
]

ONES = np.ones(64, np.float32)  # of 64 values two masks are hardly the same
KEY = jax.random.key(0)
OUTPUTS = "outputs", "state"


def keyed(din, features, rate, has_stream=True, linen_call=None, nnx_call=None):
    """Both sides are given the key of the mask."""

    def create(rngs):
        model = nnx_side.Model(din, features, rate, rngs=rngs)
        if not has_stream:
            model.dropout = nnx.Dropout(rate)
        return model

    return Pair(
        linen.Model(features, rate),
        create,
        [(din,), KEY],
        linen_call=linen_call,
        nnx_call=nnx_call,
    )


def streams(din, features, rate):
    """Each side draws a key of its own, which the comparison makes the same."""
    return Pair(
        linen.Model(features, rate),
        partial(nnx_side.Model, din, features, rate),
        [(din,)],
        randomness="same keys",
    )


def mask_of(key, rate, features=33):
    return jax.random.bernoulli(key, 1 - rate, (features,))


problem = Problem(
    linen,
    nnx_side,
    pair=keyed,
    sizes=[(1, 33, 0.9), (5, 33, 0.1)],
    compared={
        "key": Compare(),
        "streams": Compare(pair=streams),
        "linen_run": Compare(
            pair=partial(
                keyed,
                linen_call=linen.linen_run,
                nnx_call=lambda model, x, key: nnx_side.linen_run(
                    model, linen.Model(33, model.dropout.rate), x, key
                ),
            ),
            checks=OUTPUTS,
        ),
        "mask": Compare(
            pair=partial(
                keyed,
                linen_call=lambda module, variables, x, key: linen.apply_mask(
                    module, variables, x, mask_of(key, module.rate)
                ),
                nnx_call=lambda model, x, key: nnx_side.apply_mask(
                    model, x, mask_of(key, model.dropout.rate)
                ),
            ),
        ),
        "steps": Compare(
            pair=partial(
                keyed,
                linen_call=partial(linen.run_steps, num_steps=3),
                nnx_call=partial(nnx_side.run_steps, num_steps=3),
            ),
            checks=OUTPUTS,
        ),
    },
    cost=Forward(
        plain=lambda linear, x, key: plain_dropout(key, 0.5, plain_dense(linear, x)),
        weights=lambda variables: variables["params"]["linear"],
        size=lambda layers: (32, 32, 0.5, False),
    ),
    mistakes=[
        Mistake(
            "nnx",
            "self.dropout(self.linear(x), rngs=key)",
            "self.linear(self.dropout(x, rngs=key))",
            "key",
        ),
        Mistake(
            "nnx",
            "self.dropout(self.linear(x), rngs=key)",
            "self.dropout(self.linear(x))",
            "key",
        ),
        Mistake("nnx", "return model(x, drawn)", "return model(x, key)", "linen_run"),
        Mistake(
            "nnx",
            'bound.dropout.make_rng("dropout")',
            'bound.make_rng("dropout")',
            "linen_run",
        ),
        Mistake(
            "nnx", "y / (1 - model.dropout.rate)", "y / model.dropout.rate", "mask"
        ),
        Mistake("nnx", "[model(x, rngs) for", "[model(x, key) for", "steps"),
        Mistake("linen", "deterministic=False", "deterministic=True", "key"),
        Mistake(
            "linen",
            "jnp.where(mask, y / (1 - module.rate), 0)",
            "jnp.where(mask, y, 0)",
            "mask",
        ),
        Mistake(
            "linen",
            "jax.random.fold_in(key, i)",
            "jax.random.fold_in(key, i + 1)",
            "steps",
        ),
        Mistake(
            "linen",
            '{"dropout": key}',
            '{"dropout": jax.random.fold_in(key, 1)}',
            "linen_run",
        ),
    ],
)
TestDropoutSameMask = problem.tests()


def linen_dropout(rngs, rate=0.5):
    return nn.Dropout(rate, deterministic=False).apply({}, ONES, rngs=rngs)


def same(left, right):
    return bool(jnp.array_equal(left, right))


@pytest.mark.parametrize("size", problem.sizes)
def test_the_mask_is_the_one_that_the_layer_draws(size):
    pair = keyed(*size)
    model, (x, key) = pair.model, pair.arrays
    mask = mask_of(key, model.dropout.rate)
    parity.assert_equal(model(x, key), nnx_side.apply_mask(model, x, mask))


def test_a_linen_layer_that_is_called_twice_draws_a_second_key():
    pair = keyed(1, 33, 0.5)
    module, (x, key) = pair.linen, pair.arrays
    bound = module.bind({}, rngs={"dropout": key})
    keys = [bound.dropout.make_rng("dropout") for _ in range(2)]
    outputs = module.apply(
        pair.variables, x, rngs={"dropout": key}, method=lambda m, x: [m(x), m(x)]
    )
    parity.assert_equal(outputs, [pair.model(x, key) for key in keys])
    assert not same(*outputs)


def test_each_step_has_a_mask_of_its_own():
    pair = keyed(1, 33, 0.5)
    outputs = nnx_side.run_steps(pair.model, *pair.arrays, num_steps=3)
    first, second, third = (output == 0 for output in outputs)
    assert not same(first, second)
    assert not same(first, third)
    assert not same(second, third)


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
    model = keyed(1, 33, 0.5).model
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
