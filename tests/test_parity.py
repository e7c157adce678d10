"""The checker is tested on broken twins: each must fail and name the right path."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze

from linen2nnx import parity
from linen2nnx.leaves import flatten
from linen2nnx.parity import Edit, ParityError, Tolerance
from linen2nnx.parity.report import Row


class LinenMLP(nn.Module):
    num_layers: int = 3

    @nn.compact
    def __call__(self, x):
        for i in range(self.num_layers):
            x = nn.Dense(4, name=f"layers_{i}")(x)
        return nn.BatchNorm(use_running_average=False, momentum=0.5, name="norm")(x)


class NNXMLP(nnx.Module):
    momentum = 0.5

    def __init__(self, num_layers=3):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List(nnx.Linear(4, 4, rngs=rngs) for _ in range(num_layers))
        self.norm = nnx.BatchNorm(4, momentum=self.momentum, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


def pair(nnx_class=NNXMLP, seed=0):
    module = LinenMLP()
    target = jax.eval_shape(module.init, jax.random.key(0), X)
    variables, model = parity.random_pair(
        freeze(target), nnx.eval_shape(nnx_class), seed=seed
    )
    return module, variables, model


def zero_linen(index):
    def edit(variables):
        params = variables["params"]
        name = f"layers_{index}"
        layer = {**params[name], "kernel": jnp.zeros((4, 4))}
        return freeze({**variables, "params": {**params, name: layer}})

    return edit


def zero_nnx(index):
    def edit(model):
        model.layers[index].kernel = nnx.Param(jnp.zeros((4, 4)))

    return edit


def fails(match, *arguments, **keywords):
    with pytest.raises(ParityError, match=match) as error:
        parity.assert_parity(*arguments, **keywords)
    return str(error.value)


@pytest.mark.parametrize("jit", [False, True])
def test_an_intact_pair_holds_in_every_check(jit):
    report = parity.assert_parity(
        *pair(),
        X,
        edit=Edit(zero_linen(1), zero_nnx(1), ["params/layers_1/kernel"]),
        jit=jit,
    )
    assert {row.check for row in report.rows} == set(parity.CHECKS)
    assert report.largest_difference == 0
    by_check = dict.fromkeys(parity.CHECKS, 0)
    for row in report.rows:
        by_check[row.check] += 1
    assert by_check["structure"] == by_check["state"] == by_check["round trip"] == 10
    assert by_check["gradients"] == 20  # before the edit, and of the edited model


def test_swapped_kernels():
    module, variables, model = pair()
    a, b = model.layers[0], model.layers[1]
    a.kernel, b.kernel = b.kernel, a.kernel
    message = fails("structure: 2 of 10", module, variables, model, X)
    assert "params/layers_0/kernel" in message
    assert "params/layers_1/kernel" in message


def test_a_forgotten_bias():
    module, variables, model = pair()
    model.layers[2].bias = nnx.Param(jnp.zeros(4))
    message = fails("structure: 1 of 10", module, variables, model, X)
    assert "params/layers_2/bias (4,) float32: 4 of 4 values differ" in message


def test_a_transposed_square_kernel():
    module, variables, model = pair()
    model.layers[1].kernel = nnx.Param(model.layers[1].kernel[...].T)
    message = fails("structure: 1 of 10", module, variables, model, X)
    assert "params/layers_1/kernel" in message


def test_a_leaf_of_the_wrong_dtype():
    module, variables, model = pair()
    layer = model.layers[1]
    layer.bias = nnx.Param(layer.bias[...].astype(jnp.bfloat16))
    message = fails("structure", module, variables, model, X)
    assert (
        "params/layers_1/bias (4,) float32  ->  layers/1/bias (4,) bfloat16" in message
    )


def test_an_extra_variable():
    module, variables, model = pair()
    model.extra = nnx.Param(jnp.ones(2))
    assert "extra (2,) float32" in fails("structure", module, variables, model, X)


def test_an_edit_of_the_wrong_layer():
    edit = Edit(zero_linen(1), zero_nnx(2), ["params/layers_1/kernel"])
    message = fails("edit: 2 of 10", *pair(), X, edit=edit)
    assert "params/layers_1/kernel" in message
    assert "params/layers_2/kernel" in message


def test_an_off_by_one_in_copied_layers():
    def linen(both):
        params = both["params"]
        big = {**params["big"], "layers_0": params["small"]["layers_0"]}
        return {**both, "params": {**params, "big": big}}

    def off_by_one(both):
        both.big.layers[1].kernel = nnx.Param(both.small.layers[0].kernel[...])
        both.big.layers[1].bias = nnx.Param(both.small.layers[0].bias[...])

    module = LinenMLP()
    shapes = jax.eval_shape(module.init, jax.random.key(0), X)
    target = {name: {"small": tree, "big": tree} for name, tree in shapes.items()}
    variables, model = parity.random_pair(
        target, nnx.eval_shape(lambda: nnx.Dict(small=NNXMLP(), big=NNXMLP()))
    )
    message = fails(
        "edit: 4 of 20",
        lambda both, x: both["params"]["big"]["layers_0"]["bias"],
        variables,
        model,
        X,
        call=lambda both, x: both.big.layers[0].bias[...],
        edit=Edit(linen, off_by_one, ["params/big/layers_0"]),
    )
    for path in ("layers_0/kernel", "layers_0/bias", "layers_1/kernel"):
        assert f"params/big/{path}" in message


def test_the_same_seed_used_twice():
    """An edit that copies between equal models changes nothing, and is found out."""
    edit = Edit(lambda variables: variables, lambda model: None, ["params/layers_0"])
    message = fails("edit: 2 leaves", *pair(), X, edit=edit)
    assert "params/layers_0/kernel: not changed" in message


def test_an_edit_that_touches_more_than_it_says():
    edit = Edit(zero_linen(1), zero_nnx(1), [])
    message = fails("edit: 1 leaves", *pair(), X, edit=edit)
    assert "params/layers_1/kernel: changed, though" in message


@pytest.mark.parametrize("jit", [False, True])
def test_an_edit_of_the_same_values_that_stops_the_gradient(jit):
    def halve(variables):
        params = variables["params"]
        layer = {**params["layers_1"], "kernel": params["layers_1"]["kernel"] / 2}
        return freeze({**variables, "params": {**params, "layers_1": layer}})

    def halve_and_stop(model):
        kernel = jax.lax.stop_gradient(model.layers[1].kernel[...])
        model.layers[1].kernel = nnx.Param(kernel / 2)

    edit = Edit(halve, halve_and_stop, ["params/layers_1/kernel"])
    message = fails("gradients: 1 of 10", *pair(), X, edit=edit, jit=jit)
    assert "before the edit/params/layers_1/kernel" in message


def test_a_raw_array_instead_of_a_param():
    def raw(model):
        model.layers[1].kernel = jnp.zeros((4, 4))

    edit = Edit(zero_linen(1), raw, ["params/layers_1/kernel"])
    assert "layers/1/kernel" in fails("no nnx.Variable", *pair(), X, edit=edit)


def test_an_nnx_edit_that_changes_its_source():
    def edit_both(model):
        zero_nnx(1)(model)
        return nnx.clone(model)

    edit = Edit(zero_linen(1), edit_both, ["params/layers_1/kernel"])
    message = fails("source of the edit/params/layers_1/kernel", *pair(), X, edit=edit)
    assert "1 of 10" in message


def test_a_linen_edit_that_changes_its_source():
    def edit_both(variables):
        variables["params"]["layers_1"]["kernel"] = jnp.zeros((4, 4))
        return variables

    module, variables, model = pair()
    plain = variables.unfreeze()
    edit = Edit(edit_both, zero_nnx(1), ["params/layers_1/kernel"])
    message = fails("changed its own source", module, plain, model, X, edit=edit)
    assert "params/layers_1/kernel" in message
    assert np.any(plain["params"]["layers_1"]["kernel"])  # ours was a copy


def test_another_activation_shows_in_the_outputs():
    class Relu(NNXMLP):
        def __call__(self, x):
            return nnx.relu(super().__call__(x))

    assert "Linen" in fails("outputs: 1 of 1", *pair(Relu), X)


def test_stale_statistics_show_in_the_state():
    class Stale(NNXMLP):
        momentum = 0.9

    message = fails("state: 2 of 10", *pair(Stale), X)
    assert "batch_stats/norm/mean" in message
    assert "batch_stats/norm/var" in message


def test_a_stopped_gradient_shows_in_the_gradients():
    class Stopped(NNXMLP):
        def __call__(self, x):
            x = self.layers[0](x)
            x = jax.lax.stop_gradient(x)
            for layer in self.layers[1:]:
                x = layer(x)
            return self.norm(x)

    message = fails("gradients: 2 of 10", *pair(Stopped), X)
    assert "model/params/layers_0/kernel" in message


def test_a_param_of_another_type_shows_in_the_structure():
    class Frozen(nnx.Param):
        pass

    module, variables, model = pair()
    model.layers[0].kernel = Frozen(model.layers[0].kernel[...])
    assert "layers/0/kernel is Frozen" in fails(
        "structure", module, variables, model, X
    )


def test_an_optimizer_step_is_that_of_both_sides():
    report = parity.assert_parity(
        *pair(), X, checks=["optimizer step"], optimizer=optax.adam(0.1)
    )
    assert len(report.rows) == 10


@pytest.mark.parametrize("jit", [False, True])
def test_both_sides_run_jitted_or_op_by_op(jit):
    traced = []

    class Traced(NNXMLP):
        def __call__(self, x):
            traced.append(isinstance(x, jax.core.Tracer))
            return super().__call__(x)

    parity.assert_parity(*pair(Traced), X, jit=jit, checks=["outputs"])
    assert {*traced} == {jit}


def test_single_checks_can_be_chosen():
    report = parity.assert_parity(*pair(), X, checks=["outputs"])
    assert [row.check for row in report.rows] == ["outputs"]


def test_a_tolerance_is_for_one_check_only():
    class Shifted(NNXMLP):
        def __call__(self, x):
            return super().__call__(x) + 1e-3

    loose = {"outputs": Tolerance("planted", atol=2e-3)}
    arguments = (*pair(Shifted), X)
    report = parity.assert_parity(*arguments, checks=["outputs"], tolerance=loose)
    assert report.largest_difference == pytest.approx(1e-3, rel=1e-3)
    tight = {"outputs": Tolerance("planted", atol=5e-4)}
    fails("outputs", *arguments, checks=["outputs"], tolerance=tight)
    fails("outputs", *arguments, tolerance={"state": Tolerance("planted", atol=1.0)})


@pytest.mark.parametrize(
    ("nnx_value", "holds"), [(-101.0, True), (-99.1, True), (-101.1, False)]
)
def test_a_relative_tolerance_is_a_part_of_the_linen_value(nnx_value, holds):
    tolerance = Tolerance("planted", rtol=0.01)
    linen, ours = (np.array([value, 1.0]) for value in (-100.0, nnx_value))
    if holds:
        parity.assert_equal(linen, ours, tolerance=tolerance)
    else:
        with pytest.raises(ParityError, match=r"1 of 2 values differ by up to 1\.1 at"):
            parity.assert_equal(linen, ours, tolerance=tolerance)


def test_gradients_are_of_a_random_linear_function_of_the_output():
    """A constant does not move them; the same values in another order do."""

    class Shifted(NNXMLP):
        def __call__(self, x):
            return super().__call__(x) + 1

    class Reversed(NNXMLP):
        def __call__(self, x):
            return super().__call__(x)[:, ::-1]

    parity.assert_parity(*pair(Shifted), X, checks=["gradients"])
    fails("gradients: ", *pair(Reversed), X, checks=["gradients"])


@pytest.mark.parametrize(
    ("function", "positional"),
    [(parity.assert_parity, 4), (parity.random_pair, 2), (parity.assert_equal, 2)],
)
def test_options_go_by_name(function, positional):
    kinds = [p.kind for p in inspect.signature(function).parameters.values()]
    assert {*kinds[positional:]} == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cause": ""}, "cause is empty"),
        ({"cause": "x", "atol": -1}, "atol is -1"),
        ({"cause": "x", "rtol": float("nan")}, "rtol is nan"),
        ({"cause": "x", "rtol": float("inf")}, "rtol is inf"),
    ],
)
def test_a_tolerance_needs_a_cause_and_bounds(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tolerance(**arguments)


def test_nan_is_refused_at_the_start():
    module, variables, model = pair()
    variables = variables.unfreeze()
    variables["params"]["layers_0"]["bias"] = jnp.full(4, jnp.nan)
    model.layers[0].bias[...] = jnp.full(4, jnp.nan)
    with pytest.raises(ValueError, match="params/layers_0/bias holds nan"):
        parity.assert_parity(module, variables, model, X)


@pytest.mark.parametrize("keyword", ["checks", "tolerance"])
def test_an_unknown_check_is_named(keyword):
    value = {"output": Tolerance("x")} if keyword == "tolerance" else ["output"]
    with pytest.raises(
        ValueError, match="check is 'output'; it takes one of structure"
    ):
        parity.assert_parity(*pair(), X, **{keyword: value})


def test_changes_must_name_a_leaf():
    edit = Edit(zero_linen(1), zero_nnx(1), ["params/layers_1/kernel", "params/nope"])
    with pytest.raises(ValueError, match=r"edit\.changes names 'params/nope'"):
        parity.assert_parity(*pair(), X, edit=edit)


def test_neither_side_is_changed():
    module, variables, model = pair()
    before = jax.tree.leaves(nnx.state(model))
    edit = Edit(zero_linen(1), zero_nnx(1), ["params/layers_1/kernel"])
    parity.assert_parity(module, variables, model, X, edit=edit)
    assert all(a is b for a, b in zip(before, jax.tree.leaves(nnx.state(model))))


@pytest.mark.parametrize(
    ("linen", "nnx_side", "difference", "message"),
    [
        ([1.0, 2.0], [1.0, 4.0], 2.0, r"1 of 2 values differ by up to 2 at \[1\]"),
        ([1.0, 9.0], [np.nan, 9.0], np.nan, r"1 of 2 values differ by up to nan"),
        ([0.0], [-0.0], 0.0, r"1 of 1 values differ by up to 0 at \[0\]"),
        ([-0.0], [0.0], 0.0, r"1 of 1 values differ by up to 0 at \[0\]"),
        ([np.inf], [1.0], np.inf, "differ by up to inf"),
        ([1.0], [1.0, 1.0], np.inf, r"nnx has \(2,\) float64"),
        ([1.0, 1.0], [1.0], np.inf, r"nnx has \(1,\) float64"),
        ([1.0], np.float32([1.0]), np.inf, r"nnx has \(1,\) float32"),
        (np.float32([1.0]), [1.0], np.inf, r"nnx has \(1,\) float64"),
        (2.0, 3.0, 1.0, r"differ by up to 1, Linen 2.0, nnx 3.0"),
        ([1, 2], [1, 3], 1.0, "Linen 2, nnx 3"),
        ([True], [False], 1.0, "Linen True, nnx False"),
        ([1j], [2j], 1.0, "Linen 1j, nnx 2j"),
    ],
)
def test_assert_equal_finds(linen, nnx_side, difference, message):
    with parity.recording() as rows, pytest.raises(ParityError, match=message):
        parity.assert_equal(np.asarray(linen), np.asarray(nnx_side))
    np.testing.assert_equal(parity.Report(rows).largest_difference, difference)


@pytest.mark.parametrize("value", [[np.nan, 1.0], [np.inf], [-0.0], [], [3], [True]])
def test_assert_equal_accepts(value):
    report = parity.assert_equal(np.asarray(value), np.asarray(value))
    assert report.largest_difference == 0


def test_assert_equal_compares_structure():
    with pytest.raises(ParityError) as error:
        parity.assert_equal({"a": np.ones(1), "b": np.ones(2)}, {"a": np.ones(1)})
    assert "outputs: 1 of 2 leaves differ\n    b (2,) float64: only in Linen" in str(
        error.value
    )
    with pytest.raises(ParityError, match=r"b \(2,\) float64: only in nnx"):
        parity.assert_equal({}, {"b": np.ones(2)})


def test_assert_equal_compares_keys():
    parity.assert_equal(jax.random.key(1), jax.random.key(1))
    with pytest.raises(ParityError, match="values differ"):
        parity.assert_equal(jax.random.key(1), jax.random.key(2))


def test_a_largest_difference_of_nan_is_not_hidden():
    rows = [Row("outputs", "a", (), "float32", d) for d in (0.0, np.nan, 1.0)]
    assert np.isnan(parity.Report(rows).largest_difference)
    assert parity.Report([]).largest_difference == 0.0


def test_random_pair_is_random_in_every_leaf():
    _, variables, model = pair(seed=1)
    _, others, _ = pair(seed=2)
    for path, leaf in flatten(variables).items():
        values = np.asarray(leaf).ravel()
        assert len(set(values.tolist())) == values.size, path
        assert not np.array_equal(leaf, flatten(others)[path])
    assert np.all(np.asarray(variables["batch_stats"]["norm"]["var"]) >= 0.5)
    assert np.any(np.asarray(variables["params"]["layers_0"]["kernel"]) < 0)
    np.testing.assert_array_equal(
        model.layers[2].bias[...], variables["params"]["layers_2"]["bias"]
    )


def test_random_pair_casts_floats_and_seeds_rng_state():
    class WithDropout(nnx.Module):
        def __init__(self):
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
            self.norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))

    target = jax.eval_shape(
        nn.BatchNorm(True).init, jax.random.key(0), jnp.ones((1, 2))
    )
    target = {name: {"norm": tree} for name, tree in target.items()}
    variables, model = parity.random_pair(
        target, nnx.eval_shape(WithDropout), dtype=jnp.bfloat16
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
        jnp.dtype("bfloat16")
    }
    assert model.norm.mean.dtype == jnp.bfloat16
    model.dropout(jnp.ones(3))  # its key is a real one


def test_recordings_nest():
    with parity.recording() as outer:
        parity.assert_equal(np.ones(1), np.ones(1))
        with parity.recording() as inner:
            parity.assert_equal(np.ones(1), np.ones(1))
        parity.assert_equal(np.ones(1), np.ones(1))
    parity.assert_equal(np.ones(1), np.ones(1))
    assert (len(outer), len(inner)) == (3, 1)
