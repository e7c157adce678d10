"""How calls of modules are recorded, paired and compared."""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linen2nnx import parity
from linen2nnx.parity.differences import Tolerance
from linen2nnx.parity.divergence import Call, first_divergence, record_linen, record_nnx
from tests.model_pairs import floats

X = floats(2, 4)


class Calls:
    """Calls of one side, written down: `name(` begins one and `)` ends it."""

    def __init__(self, text, kinds=()):
        self.calls, open_calls, counts = [], [], {}
        for clock, token in enumerate(text.split()):
            if token != ")":
                name, _, value = token.rstrip("(").partition(":")
                open_calls.append((name, float(value or 0), clock))
                continue
            name, value, start = open_calls.pop()
            counts[name] = counts.get(name, -1) + 1
            self.calls.append(
                Call(
                    path="" if name == "." else name,
                    kind=dict(kinds).get(name, "Module"),
                    method="__call__",
                    index=counts[name],
                    start=start,
                    end=clock,
                    inputs={"x": [np.float32(start)]},
                    output=[np.full(1, value)],
                    settings={},
                )
            )
        self.calls.sort(key=lambda call: call.start)


def found(linen, ported, **keywords):
    """Inputs are ignored: only the outputs, written after the colon, count."""
    calls = []
    for text in (linen, ported):
        side = text if isinstance(text, Calls) else Calls(text)
        calls.append(
            [
                Call(**{**vars(call), "inputs": {"x": [np.zeros(1)]}})
                for call in side.calls
            ]
        )
    return first_divergence(*calls, **keywords)


def names(divergence):
    sides = (divergence.linen, divergence.nnx)
    return [call and (call.path or ".") for call in sides]


def test_the_innermost_call_is_named():
    divergence = found(".:9( a:1( b:2( ) ) )", ".:8( a:3( b:4( ) ) )")
    assert names(divergence) == ["b", "b"]
    assert divergence.matched is None
    assert "order" not in str(divergence)


def test_the_first_in_the_order_of_linen():
    divergence = found(".:9( a:1( ) b:2( ) c:3( ) )", ".:8( c:5( ) b:4( ) a:1( ) )")
    assert names(divergence) == ["b", "b"]
    assert divergence.matched[0].path == "a"
    assert "hint: the order differs: nnx calls b (Module) before a" in str(divergence)


def test_an_extra_call_shifts_no_other_module():
    divergence = found(".:9( a:1( ) b:2( ) )", ".:9( a:1( ) a:7( ) b:2( ) )")
    assert not divergence.found
    assert divergence.compared == 3
    divergence = found(".:9( a:1( ) b:2( ) )", ".:8( a:1( ) a:7( ) b:2( ) )")
    assert names(divergence) == [".", "."]


@pytest.mark.parametrize(
    ("linen", "ported", "expected"),
    [
        (".:9( a:1( ) extra:5( ) b:2( ) )", ".:8( a:1( ) b:3( ) )", ["b", "b"]),
        (".:9( a:1( ) b:2( ) extra:5( ) )", ".:8( a:1( ) b:2( ) )", ["extra", None]),
        (".:9( a:1( ) b:2( ) )", ".:8( a:1( ) b:2( ) extra:5( ) )", [None, "extra"]),
        (".:9( b:2( ) extra:0( ) )", ".:8( b:2( ) )", [".", "."]),  # changes nothing
    ],
)
def test_a_call_of_one_side_is_named_where_it_explains(linen, ported, expected):
    assert names(found(linen, ported)) == expected


def test_calls_that_may_explain_it_are_listed():
    divergence = found(".:9( a:1( ) b:2( c:3( ) ) d:4( ) )", ".:8( a:1( ) )")
    assert names(divergence) == ["b", None]
    assert "it is one of these Linen calls: b (Module), d (Module)" in divergence.hints
    assert [call.path for call in divergence.linen_only] == ["b", "c", "d"]


def test_modules_without_leaves_are_paired_by_class_and_parent():
    kinds = {"Dropout_0": "Dropout", "drop": "Dropout", "other": "Dropout"}
    divergence = found(
        Calls(".:9( Dropout_0:1( ) Dropout_0:2( ) )", kinds),
        Calls(".:9( drop:1( ) other:3( ) )", kinds),
    )
    assert names(divergence) == ["Dropout_0", "other"]


def test_a_call_in_place_of_another_of_its_class():
    sides = (".:9( a:1( ) a:2( ) b:3( ) )", ".:8( a:1( ) b:4( ) b:3( ) )")
    assert names(found(*sides)) == ["a", "b"]
    sides = (".:9( a:1( ) c:2( ) b:3( ) )", ".:8( a:1( ) a:4( ) b:5( ) )")
    assert names(found(*sides)) == ["c", "a"]


def test_a_rename_pairs():
    divergence = found(
        ".:9( a:1( ) )", ".:9( layers/0:2( ) )", rename={"a": "layers/0"}
    )
    assert names(divergence) == ["a", "layers/0"]


def test_a_tolerance():
    sides = (".:9( a:1( ) b:2( ) )", ".:8( a:1.001( ) b:3( ) )")
    tolerance = Tolerance("planted", atol=0.01)
    assert names(found(*sides, tolerance=tolerance)) == ["b", "b"]
    assert names(found(*sides)) == ["a", "a"]


def test_a_difference_as_small_as_rounding_is_named_and_the_larger_one_too():
    sides = (".:9( a:1( ) b:2( ) )", ".:8( a:1.000001( ) b:3( ) )")
    divergence = found(*sides)
    assert names(divergence) == ["a", "a"]
    assert "the first output that differs by more is that of Linen b" in str(divergence)
    divergence = found(".:9( a:1( ) )", ".:9( a:1.000001( ) )")
    assert "no difference is larger than rounding would make it" in str(divergence)


def test_nothing_in_common():
    other = Calls("b:1( )", {"b": "Other"})
    assert "no module is called on both sides" in str(found("a:1( )", other))
    assert "all 1 calls of modules match" in str(found("a:1( )", "a:1( )"))


class LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="dense")(x)


class LinenRemat(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.remat(LinenLayer)(name="layer")(x))


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return self.dense(x)


class Remat(nnx.Module):
    def __init__(self, rngs):
        self.layer = Layer(rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.layer(x))


def test_calls_inside_a_transform_have_no_values():
    variables = LinenRemat().init(jax.random.key(0), X)
    calls = record_linen(lambda: LinenRemat().apply(variables, X))
    seen = {call.path: call.seen for call in calls}
    assert seen == {"": True, "layer": False, "layer/dense": False, "head": True}
    assert "layer (LinenLayer, inside a transform)" in map(str, calls)


@pytest.mark.parametrize("wrong", ["layer", "head"])
def test_what_is_inside_a_transform_is_named_if_what_follows_it_differs(wrong):
    class Doubled(Layer if wrong == "layer" else nnx.Linear):
        def __call__(self, x):
            return super().__call__(x) * 2

    model = nnx.eval_shape(lambda: Remat(nnx.Rngs(0)))
    object.__setattr__(getattr(model, wrong), "__class__", Doubled)
    divergence = parity.compare(LinenRemat(), None, model, X).divergence
    assert names(divergence) == [wrong, wrong]
    assert divergence.linen.seen is (wrong == "head")


def test_settings_are_flags_numbers_names_and_dtypes():
    class Odd(nnx.Module):
        def __init__(self):
            self.dtype, self.param_dtype = "my own", jnp.bfloat16
            self.rate, self.act, self.kernel_init = 0.5, nnx.relu, nnx.relu
            self.weight = nnx.Param(jnp.ones(2))

        def __call__(self, x, flag):
            return x

    model = Odd()
    (call,) = record_nnx(model, lambda: model(X, flag=True))
    assert call.settings == {
        "dtype": "my own",
        "param_dtype": "bfloat16",
        "rate": 0.5,
        "act": "relu",
        "flag": True,
    }


def test_a_method_of_a_base_class_is_one_call():
    class Base(nnx.Module):
        def __call__(self, x):
            return x + 1

    class Derived(Base):
        def __call__(self, x):
            return super().__call__(x) * 2

    model = Derived()
    (call,) = record_nnx(model, lambda: model(X))
    np.testing.assert_array_equal(call.output[0], (X + 1) * 2)
    assert vars(Base)["__call__"].__qualname__.endswith("Base.__call__")


def test_a_model_that_is_not_recorded_is_left_alone():
    one, other = (nnx.Linear(4, 4, rngs=nnx.Rngs(i)) for i in range(2))
    calls = record_nnx(one, lambda: other(one(X)))
    assert [call.path for call in calls] == [""]


@pytest.mark.parametrize("sides", ["args, args", "args, kwargs", "kwargs, kwargs"])
def test_arguments_are_matched_by_name_and_then_by_order(sides):
    class Linen(nn.Module):
        def __call__(self, inputs, mask=None):
            return inputs * 2

    class Port(nnx.Module):
        def __call__(self, x, *, padding=None, mask=None):
            return x * 2

    model, mask = Port(), X > 0
    linen, ported = sides.split(", ")
    given = {"mask": mask} if linen == "kwargs" else {}
    args = (X,) if linen == "kwargs" else (X, mask)
    ours = record_linen(lambda: Linen().apply({}, *args, **given))
    theirs = record_nnx(model, lambda: model(X, mask=mask))
    assert not first_divergence(ours, theirs).found
    theirs = record_nnx(model, lambda: model(X, mask=~mask))
    assert first_divergence(ours, theirs).input
    del ported


def test_a_hundred_modules_take_seconds():
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i in range(100):
                x = jnp.tanh(nn.Dense(4, name=f"layers_{i}")(x))
            return x

    class Port(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List(nnx.Linear(4, 4, rngs=rngs) for _ in range(100))

        def __call__(self, x):
            for i, layer in enumerate(self.layers):
                x = nnx.tanh(layer(x)) if i != 90 else nnx.relu(layer(x))
            return x

    model = nnx.eval_shape(lambda: Port(nnx.Rngs(0)))
    start = time.process_time()
    report = parity.compare(Deep(), None, model, X, checks=["outputs"])
    assert report.divergence.nnx.path == "layers/91"
    assert time.process_time() - start < 10
