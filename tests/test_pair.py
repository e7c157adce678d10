"""`Pair`: what it makes, and that all that compares takes it."""

import dataclasses
import inspect
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import linen2nnx
from linen2nnx import Pair, assert_parity, compare
from linen2nnx.parity import Edit, ParityError

DENSE = Pair(nn.Dense(2), partial(nnx.Linear, 3, 2), [(3,)])


class Shifted(nnx.Linear):
    def __call__(self, x):
        return super().__call__(x) + 1


def test_both_sides_hold_the_same_random_values():
    kernel = DENSE.variables["params"]["kernel"]
    np.testing.assert_array_equal(kernel, DENSE.model.kernel[...])
    assert np.unique(kernel).size == 6
    other = dataclasses.replace(DENSE, seed=1)
    assert not np.array_equal(kernel, other.variables["params"]["kernel"])
    assert not np.array_equal(DENSE.arrays[0], other.arrays[0])


def test_a_model_is_new_each_time():
    DENSE.model.kernel[...] = jnp.zeros((3, 2))
    assert DENSE.model.kernel[...].all()


def test_what_differs_is_an_error_and_a_report():
    shifted = dataclasses.replace(DENSE, create=partial(Shifted, 3, 2))
    with pytest.raises(ParityError, match="outputs: 1 of 1 leaves differ"):
        assert_parity(shifted)
    assert compare(shifted).failed == "outputs"
    assert compare(DENSE).failed == ""


def test_sides_that_do_not_correspond_are_a_report_too():
    wide = dataclasses.replace(DENSE, create=partial(nnx.Linear, 3, 4))
    assert compare(wide).failed == "structure"
    with pytest.raises(ParityError, match="structure: Linen variables and nnx model"):
        assert_parity(wide)


def test_inputs_are_shapes_or_arrays():
    ids = np.asarray([2, 0])
    pair = Pair(nn.Embed(3, 2), partial(nnx.Embed, 3, 2), [ids])
    assert pair.arrays[0] is ids
    assert assert_parity(pair, checks=["outputs"]).largest_difference == 0


def test_dtypes():
    half = dataclasses.replace(DENSE, dtype=jnp.bfloat16)
    leaves = [*jax.tree.leaves(half.variables), half.model.kernel, *half.arrays]
    assert {leaf.dtype for leaf in leaves} == {jnp.bfloat16.dtype}
    inputs = dataclasses.replace(DENSE, input_dtype=jnp.bfloat16).arrays
    assert inputs[0].dtype == jnp.bfloat16


def test_a_checkpoint_is_taken_as_it_is():
    variables = nn.Dense(2).init(jax.random.key(3), jnp.ones(3))
    pair = dataclasses.replace(DENSE, checkpoint=variables)
    assert pair.variables is variables
    kernel = variables["params"]["kernel"]
    np.testing.assert_array_equal(pair.model.kernel[...], kernel)
    assert_parity(pair)


def test_calls_in_place_of_the_models():
    pair = dataclasses.replace(
        DENSE,
        linen_call=lambda module, variables, x: 2 * module.apply(variables, x),
        nnx_call=lambda model, x: model(x) + model(x),
    )
    assert_parity(pair)
    assert compare(dataclasses.replace(pair, nnx_call=None)).failed == "outputs"


@pytest.mark.parametrize("mode", ["graph", "tree"])
def test_the_mode_is_set_while_it_is_compared(mode):
    seen = []

    def call(model, x):
        model.again = model.kernel  # two places: tree mode takes no such model apart
        try:
            nnx.split(model)
            seen.append("graph")
        except ValueError:
            seen.append("tree")
        del model.again
        return model(x)

    pair = dataclasses.replace(DENSE, nnx_call=call, mode=mode)
    assert_parity(pair, checks=["outputs"])
    assert {*seen} == {mode}


def test_variables_of_a_seed():
    model = DENSE.model_from(7)
    np.testing.assert_array_equal(
        DENSE.variables_of(model)["params"]["kernel"], model.kernel[...]
    )
    assert np.array_equal(DENSE.model_from(7).kernel, model.kernel)
    assert not np.array_equal(DENSE.model_from(8).kernel, model.kernel)


def test_an_edit_jit_and_checks_are_given_beside_it():
    def nothing(variables):
        return variables

    edit = Edit(nothing, lambda model: None, changes=["params/kernel"])
    assert compare(DENSE, edit=edit, jit=True).failed == "edit"
    assert compare(DENSE, checks=["outputs"], jit=True).checks == ("outputs",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: dataclasses.replace(
                DENSE, create=nnx.Linear(3, 2, rngs=nnx.Rngs(0))
            ),
            "create is a Linear; it takes a function that makes the nnx model",
        ),
        (
            lambda: dataclasses.replace(DENSE, inputs=jnp.ones(3)),
            "inputs is Array.*; it takes a list",
        ),
        (
            lambda: assert_parity(DENSE, rename={"a": "b"}),
            "the pair says itself what rename are; got both",
        ),
        (lambda: assert_parity(nn.Dense(2), None), "nnx_model is missing"),
        (
            lambda: assert_parity(dataclasses.replace(DENSE, linen=nn.Dense)),
            "linen_module is the class Dense; it takes a model",
        ),
        (
            lambda: assert_parity(dataclasses.replace(DENSE, inputs=[(3,), (3,)])),
            "Linen Dense takes",
        ),
    ],
)
def test_what_is_easily_taken_for_something_else_is_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_the_names_that_the_package_exports():
    for name in linen2nnx.__all__:
        assert getattr(linen2nnx, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'pair'"):
        _ = linen2nnx.pair
    assert [*inspect.signature(compare).parameters][:3] == [
        "linen_module",
        "variables",
        "nnx_model",
    ]


def refuse(**changes):
    return lambda: dataclasses.replace(DENSE, **changes)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (refuse(inputs=(5, 3)), TypeError, r"inputs is \(5, 3\); it takes a list"),
        (
            refuse(inputs=["float32[5,3]"]),
            TypeError,
            r"inputs\[0\] is 'float32\[5,3\]'",
        ),
        (refuse(inputs=[(0, 3)]), TypeError, r"inputs\[0\] is \(0, 3\); it takes"),
        (refuse(rename="a"), TypeError, "rename is 'a'; it takes a dict"),
        (refuse(nnx_kwargs=None), TypeError, "nnx_kwargs is None; it takes a dict"),
        (refuse(linen_call="apply"), TypeError, "linen_call is 'apply'; it takes a f"),
        (refuse(checkpoint=jnp.ones(3)), TypeError, "checkpoint is Array"),
        (refuse(seed="a"), TypeError, "seed is 'a'; it takes a whole number"),
        (refuse(mode="trees"), ValueError, "mode is 'trees'; it takes one of None, g"),
        (refuse(randomness="x"), ValueError, "randomness is 'x'; it takes one of det"),
        (
            refuse(input_dtype=jnp.int32),
            ValueError,
            "random inputs are floating, not i",
        ),
        (
            lambda: assert_parity(refuse(create=lambda rngs: None)()),
            TypeError,
            "create made a NoneType",
        ),
        (
            lambda: assert_parity(DENSE, randomness="statistics"),
            TypeError,
            "the pair says itself what randomness are",
        ),
        (lambda: assert_parity(DENSE, jnp.ones(3)), TypeError, "what variables are"),
        (lambda: assert_parity(DENSE, checks=[]), ValueError, "nothing is compared"),
        (
            lambda: assert_parity(DENSE, checks=["edit"]),
            ValueError,
            "nothing is compared without an edit",
        ),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_flag_among_the_inputs_is_static():
    class Flagged(nn.Module):
        @nn.compact
        def __call__(self, x, double):
            return nn.Dense(2)(x) * (2 if double else 1)

    pair = Pair(
        Flagged(),
        partial(nnx.Linear, 3, 2),
        [(3,), True],
        rename={"Dense_0/kernel": "kernel", "Dense_0/bias": "bias"},
        nnx_call=lambda model, x, double: model(x) * (2 if double else 1),
    )
    assert_parity(pair, jit=True)
