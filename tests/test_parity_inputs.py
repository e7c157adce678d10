"""What a porter gives to a comparison: inputs, modes, randomness, values, mistakes."""

import re

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linen2nnx import mapping, parity
from linen2nnx.parity import ParityError, Tolerance
from linen2nnx.parity.randomness import same_keys
from tests.model_pairs import MLP, PAIRS, floats

X = floats(2, 4)


class LinenNet(nn.Module):
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, mask=None, *, train=False, scale=1.0):
        x = nn.Dense(4, name="hidden")(x)
        if mask is not None:
            x = jnp.where(mask, x, 0.0)
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        x = nn.BatchNorm(not train, momentum=0.9, name="norm")(x)
        return {"out": x * scale, "sum": x.sum()}


class Net(nnx.Module):
    def __init__(self, rngs, rate=0.5):
        self.hidden = nnx.Linear(4, 4, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)

    def __call__(self, x, mask=None, *, scale=1.0):
        x = self.hidden(x)
        if mask is not None:
            x = jnp.where(mask, x, 0.0)
        x = self.norm(self.dropout(x))
        return {"out": x * scale, "sum": x.sum()}


def shapes_only(create=Net, mode="eval"):
    model = nnx.eval_shape(lambda: create(nnx.Rngs(0)))
    getattr(model, mode)()
    return model


@pytest.mark.parametrize("jit", [False, True])
def test_keyword_inputs_of_either_side(jit, nnx_mode):
    """An array is traced by jit; a flag or number is not."""
    both = {"mask": X > 0, "scale": 2.0}
    report = parity.assert_parity(
        LinenNet(),
        None,
        shapes_only(),
        X,
        linen_kwargs={**both, "train": False},
        nnx_kwargs=both,
        jit=jit,
    )
    assert [row.path for row in report.rows if row.check == "outputs"] == ["out", "sum"]
    assert report.jit is jit


def test_a_positional_flag_is_static():
    class Flag(nn.Module):
        @nn.compact
        def __call__(self, train, x):
            return nn.Dense(2)(x) if train else x

    parity.assert_parity(
        Flag(),
        None,
        nnx.eval_shape(lambda: nnx.Linear(4, 2, rngs=nnx.Rngs(0))),
        True,
        X,
        call=lambda model, train, x: model(x),
        rename={"Dense_0/kernel": "kernel", "Dense_0/bias": "bias"},
        jit=True,
    )


def test_train_mode_with_the_same_keys(nnx_mode):
    arguments = (LinenNet(), None, shapes_only(mode="train"), X)
    keywords = {"linen_kwargs": {"train": True}, "randomness": "same keys"}
    report = parity.assert_parity(*arguments, **keywords)
    assert report.randomness == "same keys"
    assert {row.check for row in report.rows} == {*parity.CHECKS} - {"edit"}
    other = shapes_only(lambda rngs: Net(rngs, rate=0.4), "train")
    report = parity.compare(LinenNet(), None, other, X, **keywords)
    assert report.divergence.nnx.path == "dropout"
    assert "rate is 0.5 in Linen and 0.4 in nnx" in report.failure


@pytest.mark.parametrize("rnn_rngs", [None, True], ids=["rngs", "own stream"])
def test_every_key_is_another_one_and_that_of_a_carry_does_not_count(
    nnx_mode, rnn_rngs
):
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.RNN(nn.LSTMCell(4, name="cell"))(x)
            first = nn.Dropout(0.5, deterministic=False)(x)
            return first, nn.Dropout(0.5, deterministic=False)(x)

    class Port(nnx.Module):
        def __init__(self, rngs):
            self.rnn = nnx.RNN(nnx.LSTMCell(4, 4, rngs=rngs), rngs=rnn_rngs or rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            x = self.rnn(x)
            return self.dropout(x), self.dropout(x)

    x = floats(2, 3, 4)
    keywords = {"rename": {"cell": "rnn/cell"}, "randomness": "same keys"}
    model = nnx.eval_shape(lambda: Port(nnx.Rngs(0)))
    parity.assert_parity(Linen(), None, model, x, checks=["outputs"], **keywords)
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    with same_keys(jax.random.key(0)):
        assert not np.array_equal(dropout(x), dropout(x))


def test_keys_that_are_drawn_in_a_scan_are_not_made_the_same():
    """nn.scan and nnx.scan trace their function another number of times."""
    x = floats(2, 4)

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            def drop(dropout, carry, row):
                return carry, dropout(row)

            scan = nn.scan(drop, split_rngs={"dropout": True})
            return scan(nn.Dropout(0.5, deterministic=False), None, x)[1]

    class Port(nnx.Module):
        def __init__(self, rngs):
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            @nnx.scan(in_axes=(None, 0), out_axes=0)
            def drop(dropout, row):
                return dropout(row)

            return drop(self.dropout, x)

    port = Port(nnx.Rngs(0))
    keywords = {"randomness": "same keys", "checks": ["outputs"]}
    report = parity.compare(Linen(), {}, port, x, **keywords)
    assert report.failed == "outputs"


def test_modules_in_a_dict_are_paired_as_their_leaves_are():
    class Linen(nn.Module):
        def setup(self):
            self.heads = {"left": nn.Dense(4), "right": nn.Dense(4)}

        def __call__(self, x):
            return self.heads["right"](nn.relu(self.heads["left"](x)))

    class Port(nnx.Module):
        def __init__(self, rngs):
            left, right = (nnx.Linear(4, 4, rngs=rngs) for _ in range(2))
            self.heads = nnx.Dict(left=left, right=right)

        def __call__(self, x):
            return self.heads["right"](self.heads["left"](x))

    model = nnx.eval_shape(lambda: Port(nnx.Rngs(0)))
    found = parity.compare(Linen(), None, model, X).divergence
    assert (found.linen.path, found.nnx.path) == ("heads_right", "heads/right")
    assert found.matched[1].path == "heads/left"


def test_a_gradient_that_differs_by_rounding_says_so():
    class Rounded(nnx.Linear):
        def __call__(self, x):
            bias = self.bias[...]
            nothing = bias - jax.lax.stop_gradient(bias)
            return super().__call__(x) + 1e-7 * nothing

    model = nnx.eval_shape(lambda: Rounded(4, 4, rngs=nnx.Rngs(0)))
    report = parity.compare(nn.Dense(4), None, model, X)
    assert report.failed == "gradients"
    assert "which may be rounding; if one side sums in another order" in report.failure


def test_statistics_of_random_outputs():
    def linen(rate):
        return nn.Dropout(rate, deterministic=False)

    keywords = {"randomness": "statistics"}
    model = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    report = parity.assert_parity(linen(0.5), {}, model, X[:1], **keywords)
    paths = [row.path for row in report.rows if row.check == "outputs"]
    assert paths == ["mean", "variance"]
    assert "within six standard errors" in str(report)
    with pytest.raises(ParityError, match="the variance over 1000 draws differs in 4"):
        parity.assert_parity(linen(0.3), {}, model, X[:1], **keywords)
    keywords["call"] = lambda model, x: model(x)[:, :1]
    with pytest.raises(ParityError, match="another shape or missing in nnx"):
        parity.assert_parity(linen(0.5), {}, model, X[:1], **keywords)


def test_the_same_seed_is_not_the_same_mask():
    module = nn.Dropout(0.5, deterministic=False)
    linen = module.apply({}, X, rngs={"dropout": jax.random.key(0)})
    ported = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=0))(X)
    assert not np.array_equal(linen, ported)


def test_a_checkpoint_and_a_model_without_values(nnx_mode):
    module = LinenNet()
    variables = module.init(jax.random.key(3), X)
    parity.assert_parity(module, variables, shapes_only(), X)


def test_a_checkpoint_and_a_model_with_other_values():
    """A model that has values is compared as it is: how it got them is tested too."""
    module = LinenNet()
    variables = module.init(jax.random.key(3), X)
    model = Net(nnx.Rngs(3))
    model.eval()
    report = parity.compare(module, variables, model, X)
    assert report.failed == "structure"
    assert "to_nnx(variables, nnx_model) gives one that does" in report.failure
    filled = mapping.to_nnx(variables, model)
    assert parity.compare(module, variables, filled, X).failed == ""


def test_what_a_module_sows_is_compared_only_where_asked_for():
    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.sow("intermediates", "h", x)
            return nn.Dense(4, name="out")(x)

    class Port(nnx.Module):
        def __init__(self, rngs):
            self.out = nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, x):
            self.h = nnx.Intermediate((x,))
            return self.out(x)

    model = nnx.eval_shape(lambda: Port(nnx.Rngs(0)))
    parity.assert_parity(Sowing(), None, model, X)


def test_a_model_without_leaves():
    class Half(nnx.Module):
        def __call__(self, x):
            return x / 2

    class LinenHalf(nn.Module):
        def __call__(self, x):
            return x / 2

    report = parity.assert_parity(LinenHalf(), {}, Half(), X)
    assert {row.check for row in report.rows} == {"outputs"}
    assert "no leaves" in str(report)


def test_two_collections_with_one_path():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            scale = self.param("scale", nn.initializers.ones, (4,))
            kept = self.variable("batch_stats", "scale", jnp.ones, (4,))
            return x * scale + kept.value

    class Port(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones(4))
            self.kept = nnx.BatchStat(jnp.ones(4))

        def __call__(self, x):
            return x * self.scale[...] + self.kept[...]

    rename = {"scale": "kept"}
    parity.assert_parity(Twice(), None, nnx.eval_shape(Port), X, rename=rename)


# What is refused, and how


def pair():
    return PAIRS["mlp"].linen, *PAIRS["mlp"].values


def refused(kind, match, *arguments, **keywords):
    with pytest.raises(kind, match=match) as error:
        parity.assert_parity(*arguments, **keywords)
    return error.value


def test_sides_and_classes():
    module, variables, model = pair()
    refused(TypeError, "linen_module is the class LinenMLP", type(module), {}, model, X)
    refused(TypeError, "nnx_model is the class MLP", module, variables, MLP, X)
    message = "linen_module is a MLP and nnx_model a LinenMLP; the order is Linen"
    refused(TypeError, message, model, variables, module, X)
    message = "linen_module is a MLP and nnx_model a MLP; the order is Linen"
    refused(TypeError, message, model, variables, model, X)
    message = "linen_module is a LinenMLP and nnx_model a LinenMLP; the order is Linen"
    refused(TypeError, message, module, variables, module, X)


def test_variables():
    module, variables, model = pair()
    refused(ValueError, "variables is empty", module, {}, model, X)
    params = variables["params"]
    message = "has the keys 'Dense_0', 'Dense_1' and no collection such as 'params'"
    refused(ValueError, message, module, params, model, X)
    refused(TypeError, "variables is MLP; it takes a dict", module, model, model, X)
    refused(TypeError, "linen_module is a function", module.apply, None, model, X)


def test_inputs():
    module, variables, model = pair()
    message = r"Linen LinenMLP takes \(x\) and got 2 inputs, train=: "
    refused(
        TypeError, message, module, variables, model, X, X, linen_kwargs={"train": 1}
    )
    message = r"nnx MLP takes \(x\) and got 1 inputs, train=: "
    refused(TypeError, message, module, variables, model, X, nnx_kwargs={"train": True})

    class WithoutCall(nnx.Module):
        pass

    message = "nnx WithoutCall has no __call__; give call=lambda model, x: model.method"
    refused(TypeError, message, module, variables, WithoutCall(), X)


def test_words():
    message = "randomness is 'seed'; it takes one of deterministic, same keys, stat"
    refused(ValueError, message, *pair(), X, randomness="seed")


def test_an_output_of_nan_shows_nothing():
    keywords = {"rename": PAIRS["mlp"].rename}
    message = "the output .*is nan throughout on both sides"
    refused(ValueError, message, *pair(), np.full_like(X, np.nan), **keywords)


@pytest.mark.parametrize(
    ("error", "advice", "linen_kwargs"),
    [("InvalidRngError", "give randomness='same keys'", {"train": True})],
)
def test_linen_draws_and_nothing_is_given(error, advice, linen_kwargs):
    kind = getattr(flax.errors, error)
    with pytest.raises(kind) as raised:
        parity.assert_parity(
            LinenNet(), None, shapes_only(), X, linen_kwargs=linen_kwargs
        )
    assert advice in raised.value.__notes__[-1]


def test_linen_updates_what_variables_do_not_hold():
    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x):
            if not self.is_initializing():
                self.put_variable("counts", "n", 1)
            return nn.Dense(2, name="out")(x)

    model = nnx.eval_shape(lambda: nnx.Dict(out=nnx.Linear(4, 2, rngs=nnx.Rngs(0))))
    error = refused(
        flax.errors.ModifyScopeVariableError,
        "counts",
        Counting(),
        None,
        model,
        X,
        call=lambda model, x: model.out(x),
    )
    assert "Linen may update the collections that variables hold" in error.__notes__[-1]


def test_a_function_does_not_show_what_linen_updates():
    module = PAIRS["resnet"].linen
    variables, model = PAIRS["resnet"].values

    def forgets(variables, x):
        return module.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    (x,) = PAIRS["resnet"].inputs
    checks = ["outputs", "state"]
    report = parity.compare(forgets, variables, model, x, checks=checks)
    assert report.failed == "state"
    assert "linen_module is a function, whose updates are not seen" in report.failure


def test_an_unbound_module_in_a_function():
    module, variables, model = pair()
    error = refused(
        flax.errors.CallCompactUnboundModuleError,
        None,
        lambda variables, x: module(x),
        variables,
        model,
        X,
        rename=PAIRS["mlp"].rename,
    )
    assert "calls module.apply(variables, *inputs)" in error.__notes__[-1]


def test_variables_of_another_module():
    error = refused(
        flax.errors.ScopeParamShapeError,
        None,
        nn.Dense(7),
        {"params": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}},
        nnx.eval_shape(lambda: nnx.Linear(4, 2, rngs=nnx.Rngs(0))),
        X,
        checks=["outputs"],
    )
    assert "not those of this module" in error.__notes__[-1]


# The report


def planted():
    variables, model = PAIRS["mlp"].values
    model = nnx.clone(model)
    model.out = nnx.Sequential(model.out, lambda x: x + 1e-3)
    rename = {"Dense_0": "out/layers/0", "Dense_1": "hidden"}
    return PAIRS["mlp"].linen, variables, model, rename


def test_compare_returns_what_assert_parity_raises():
    *arguments, rename = planted()
    report = parity.compare(*arguments, X, rename=rename)
    with pytest.raises(ParityError) as error:
        parity.assert_parity(*arguments, X, rename=rename)
    assert str(error.value) == report.failure == error.value.report.failure
    assert report.failed == "outputs"
    assert report.divergence.matched[0].path == "Dense_0"


def test_a_report_as_text_and_in_a_notebook():
    *arguments, rename = planted()
    report = parity.compare(*arguments, X, rename=rename)
    text = str(report)
    for line in (
        r"both sides op by op, randomness: deterministic",
        r"structure .* 4 .* none .* same",
        r"outputs .* 1 .* 0.001 .* differs",
        r"gradients .* not reached",
        r"first diverging module:",
    ):
        assert re.search(line, text), line
    assert "\x1b" not in text
    html = report._repr_html_()
    assert html.startswith("<pre>")
    assert "first diverging module" in html
    loose = {"outputs": Tolerance("planted", atol=1e-2)}
    report = parity.compare(
        *arguments, X, rename=rename, tolerance=loose, checks=["outputs"]
    )
    assert "within its tolerance: planted" in str(report)
    assert "the same in every check" in str(report)


def test_a_tolerance_holds_for_the_modules_too():
    """A difference that is allowed is not what is named."""

    class Shifted(MLP):
        def __call__(self, x):
            return self.out(nnx.relu(self.hidden(x) + 1e-4)) + 0.1

    model = nnx.eval_shape(lambda: Shifted(nnx.Rngs(0)))
    keywords = {"rename": PAIRS["mlp"].rename, "checks": ["outputs"]}
    loose = {"outputs": Tolerance("planted", atol=1e-2)}
    linen = PAIRS["mlp"].linen
    report = parity.compare(linen, None, model, X, tolerance=loose, **keywords)
    assert report.divergence.nnx.path == ""
    report = parity.compare(linen, None, model, X, **keywords)
    assert report.divergence.nnx.path == "out"


def test_classes_are_as_before_also_after_an_error():
    before = nnx.Linear.__call__

    class Failing(MLP):
        def __call__(self, x):
            if isinstance(x, jax.core.Tracer):
                return super().__call__(x) + 1
            raise RuntimeError("only under jit")

    model = nnx.eval_shape(lambda: Failing(nnx.Rngs(0)))
    keywords = {"rename": PAIRS["mlp"].rename, "jit": True}
    report = parity.compare(PAIRS["mlp"].linen, None, model, X, **keywords)
    assert report.failed == "outputs"
    assert "RuntimeError: only under jit" in report.failure
    assert report.divergence is None
    assert nnx.Linear.__call__ is before
