from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict, freeze

from linen2nnx import mapping
from linen2nnx.leaves import flatten
from linen2nnx.mapping import MappingError, Row


class Counter(nnx.Variable):
    """A Variable type of the user's own."""


class Unregistered(nnx.Variable):
    """A Variable type that no collection stands for."""


nnx.register_variable_name("counters", Counter)


class LinenBlock(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.features, name="if")(x)
        x = nn.BatchNorm(use_running_average=True, name="norm")(x)
        self.variable("counters", "calls", lambda: jnp.zeros((), jnp.int32))
        return x


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(11):
            x = LinenBlock(3, name=f"blocks_{i}")(x)
        return nn.Dense(2, name="head")(x)


class NNXBlock(nnx.Module):
    def __init__(self, features, rngs):
        self.if_ = nnx.Linear(features, features, rngs=rngs)
        self.norm = nnx.BatchNorm(features, use_running_average=True, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.calls = Counter(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        return self.norm(self.if_(x))


class NNXModel(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List(NNXBlock(3, rngs) for _ in range(11))
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class TwoLayers(nnx.Module):
    def __init__(self, rngs, features=(4, 2)):
        self.fc1 = nnx.Linear(3, features[0], rngs=rngs)
        self.fc2 = nnx.Linear(features[0], features[1], rngs=rngs)


def distinct_values(tree):
    """Another value in every entry of every leaf."""
    leaves, treedef = jax.tree.flatten(tree)
    starts = np.cumsum([0, *(np.prod(leaf.shape, dtype=int) for leaf in leaves)])
    return treedef.unflatten(
        jnp.asarray(np.arange(start, stop, dtype=leaf.dtype).reshape(leaf.shape))
        for start, stop, leaf in zip(starts, starts[1:], leaves)
    )


@pytest.fixture(scope="module")
def model():
    return NNXModel(nnx.Rngs(0))


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(LinenModel().init, jax.random.key(0), jnp.ones(3))
    return distinct_values(shapes)


def dense(*names, shape=(3, 4), dtype=jnp.float32):
    """Linen variables of Dense layers of these names."""
    layer = {"kernel": jnp.ones(shape, dtype), "bias": jnp.ones(shape[1:], dtype)}
    return {"params": dict.fromkeys(names, layer)}


def test_each_leaf_goes_to_its_place(model, variables):
    rows = {row.linen: row.nnx for row in mapping.table(variables, model)}
    assert rows["params/blocks_10/if/kernel"] == "blocks/10/if_/kernel"
    assert rows["batch_stats/blocks_2/norm/mean"] == "blocks/2/norm/mean"
    assert rows["counters/blocks_0/calls"] == "blocks/0/calls"
    assert rows["params/head/bias"] == "head/bias"
    assert len(rows) == len(jax.tree.leaves(variables)) == len(set(rows.values()))


def test_both_directions_are_inverses(model, variables):
    filled = mapping.to_nnx(variables, model)
    params = variables["params"]
    np.testing.assert_array_equal(
        filled.blocks[10].if_.kernel[...], params["blocks_10"]["if"]["kernel"]
    )
    back = mapping.to_linen(filled, variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_the_targets_are_not_changed(model, variables):
    before = jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    filled = mapping.to_nnx(variables, model)
    filled.head.kernel[...] = jnp.zeros((3, 2))
    after = jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert all(a is b for a, b in zip(before, after))


def test_rng_state_is_that_of_the_target(model, variables):
    filled = mapping.to_nnx(variables, model)
    ours, theirs = (m.blocks[0].dropout.rngs for m in (model, filled))
    assert ours.key is not theirs.key
    assert jnp.all(ours.key[...] == theirs.key[...])


def test_an_abstract_target_is_filled(variables):
    abstract = nnx.eval_shape(lambda: NNXModel(nnx.Rngs(0)))
    filled = mapping.to_nnx(variables, abstract)
    assert filled(jnp.ones(3)).shape == (2,)


@pytest.mark.parametrize("kind", [dict, FrozenDict])
def test_the_kind_of_dict_is_that_of_the_target(kind, model, variables):
    target = freeze(variables) if kind is FrozenDict else variables
    assert type(mapping.to_linen(model, target)) is kind


def test_state_in_state_out(model, variables):
    state = mapping.to_nnx(variables, nnx.state(model))
    assert isinstance(state, nnx.State)
    assert mapping.to_linen(state, variables).keys() == variables.keys()


def test_partitioned_leaves_keep_their_box():
    boxed = {"params": {"kernel": nn.Partitioned(jnp.ones((3, 2)), ("in", "out"))}}
    model = nnx.Linear(3, 2, use_bias=False, rngs=nnx.Rngs(0))
    linen = mapping.to_linen(model, boxed)["params"]["kernel"]
    assert linen.names == ("in", "out")
    np.testing.assert_array_equal(linen.value, model.kernel[...])


def test_rename_of_modules_and_of_a_leaf():
    model = TwoLayers(nnx.Rngs(0), features=(4, 2))
    variables = {
        "params": {
            "Dense_0": {"kernel": jnp.ones((3, 4)), "b": jnp.ones(4)},
            "Dense_1": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
        }
    }
    rename = {"Dense_0": "fc1", "Dense_0/b": "fc1/bias", "Dense_1": "fc2"}
    rows = {r.nnx: r.linen for r in mapping.table(variables, model, rename=rename)}
    assert rows["fc1/bias"] == "params/Dense_0/b"
    assert rows["fc2/kernel"] == "params/Dense_1/kernel"


def test_every_mismatch_is_listed_with_renames_to_paste():
    variables = {
        "params": {
            "Dense_0": dense("x")["params"]["x"],
            "Dense_1": dense("x", shape=(4, 2))["params"]["x"],
        }
    }
    with pytest.raises(MappingError) as error:
        mapping.table(variables, TwoLayers(nnx.Rngs(0)))
    message = str(error.value)
    for line in (
        "params/Dense_0/kernel (3, 4) float32",
        "params/Dense_1/bias (2,) float32",
        "fc1/bias (4,) float32 (looked for params/fc1/bias)",
        '"Dense_0": "fc1",',
        '"Dense_1": "fc2",',
    ):
        assert line in message
    lines = message.split("rename=")[1]
    rename = eval(lines)
    assert len(mapping.table(variables, TwoLayers(nnx.Rngs(0)), rename=rename)) == 4


def test_ambiguous_suggestions_say_so():
    model = TwoLayers(nnx.Rngs(0), features=(3, 3))
    with pytest.raises(MappingError, match="by the order of names") as error:
        mapping.table(dense("a_10", "a_2", shape=(3, 3)), model)
    assert '"a_2": "fc1",  # or a_10' in str(error.value)
    assert '"a_10": "fc2",  # or a_2' in str(error.value)


def test_of_many_ambiguous_suggestions_three_are_named():
    model = nnx.Dict({f"fc{i}": nnx.Linear(3, 3, rngs=nnx.Rngs(0)) for i in range(6)})
    variables = dense("a", "b", "c", "d", "e", "f", shape=(3, 3))
    with pytest.raises(MappingError) as error:
        mapping.table(variables, model)
    assert '"a": "fc0",  # or b, c, d or 2 more' in str(error.value)


def test_the_largest_module_is_suggested_first():
    layers = dense("inner", "outer")["params"]
    variables = {"params": {"Block_0": layers, **dense("Dense_0")["params"]}}

    def linear():
        return nnx.Linear(3, 4, rngs=nnx.Rngs(0))

    block = nnx.Dict(inner=linear(), outer=linear())
    model = nnx.Dict(a=linear(), b=nnx.Dict(c=block))
    with pytest.raises(MappingError) as error:
        mapping.table(variables, model)
    rename = eval(str(error.value).split("rename=")[1])
    assert rename == {"Block_0": "b/c", "Dense_0": "a"}
    assert "# or" not in str(error.value)


def test_suggestions_for_leaves_at_the_top():
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    with pytest.raises(MappingError) as error:
        mapping.table(dense("Dense_0"), model)
    rename = eval(str(error.value).split("rename=")[1])
    assert rename == {"Dense_0/bias": "bias", "Dense_0/kernel": "kernel"}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (dense("fc1"), "nnx leaves that no Linen leaf fills:\n    fc2/bias"),
        (
            {"params": {**dense("fc1", "fc2")["params"], "fc3": jnp.ones(1)}},
            "Linen leaves that no nnx leaf takes:\n    params/fc3 (1,) float32",
        ),
        (
            {**dense("fc1", "fc2"), "cache": {"index": jnp.ones(())}},
            "Linen leaves that no nnx leaf takes:\n    cache/index () float32",
        ),
        (
            dense("fc1", "fc2", shape=(4, 3)),
            "params/fc1/kernel (4, 3) float32  ->  fc1/kernel (3, 4) float32",
        ),
        (
            dense("fc1", "fc2", dtype=jnp.bfloat16),
            "params/fc1/bias (4,) bfloat16  ->  fc1/bias (4,) float32",
        ),
        ({"params": {"fc1": 3.0}}, "no arrays:\n    params/fc1 is 3.0"),
    ],
    ids=["missing", "extra leaf", "extra collection", "shape", "dtype", "no array"],
)
def test_what_does_not_correspond_is_an_error(variables, message):
    model = TwoLayers(nnx.Rngs(0), features=(4, 4))
    with pytest.raises(MappingError) as error:
        mapping.to_nnx(variables, model)
    assert message in str(error.value)
    with pytest.raises(MappingError):
        mapping.to_linen(model, variables)


def test_a_transposed_shape_is_never_transposed():
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    variables = {"params": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(4)}}
    with pytest.raises(MappingError, match=r"params/kernel \(4, 3\)"):
        mapping.to_nnx(variables, model)


def test_one_linen_leaf_for_two_nnx_leaves():
    model = nnx.Dict(a=nnx.Param(jnp.ones(2)), a_=nnx.Param(jnp.ones(2)))
    with pytest.raises(MappingError, match=r"params/a  ->  a, a_"):
        mapping.table({"params": {"a": jnp.ones(2)}}, model, rename={"a": "a_"})


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({"Dense_9": "fc9"}, 'renames that fit no nnx leaf:\n    "Dense_9": "fc9"'),
        ({"a": "fc1", "b": "fc1"}, "two Linen paths one nnx path"),
    ],
)
def test_a_rename_that_cannot_be_right(rename, message):
    model = TwoLayers(nnx.Rngs(0), features=(4, 4))
    with pytest.raises(MappingError, match=message):
        mapping.table(dense("fc1", "fc2"), model, rename=rename)


def test_a_raw_array_is_no_variable():
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    model.kernel = jnp.ones((3, 4))
    variables = {"params": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}
    with pytest.raises(MappingError, match=r"no nnx.Variable.*\n    kernel \(3, 4\)"):
        mapping.to_nnx(variables, model)


def test_a_type_without_a_collection():
    model = nnx.Dict(a=Unregistered(jnp.ones(2)))
    with pytest.raises(MappingError, match="register_variable_name") as error:
        mapping.table({"params": {"a": jnp.ones(2)}}, model)
    assert "a is Unregistered" in str(error.value)


def test_names_below_other_modules():
    """An underscore at the end may be the name's own; a number joins its list."""

    class Inner(nnx.Module):
        def __init__(self, rngs):
            self.out_ = nnx.Linear(2, 2, rngs=rngs)
            self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs)])

    class Outer(nnx.Module):
        def __init__(self, rngs):
            self.inner = Inner(rngs)

    def linear(*shape):
        return {
            "kernel": jax.ShapeDtypeStruct(shape, jnp.float32),
            "bias": jax.ShapeDtypeStruct(shape[-1:], jnp.float32),
        }

    inner = {"out_": linear(2, 2), "layers_0": linear(2, 3)}
    linen = {"params": {"inner": inner}}
    rows = mapping.table(linen, nnx.eval_shape(lambda: Outer(nnx.Rngs(0))))
    names = {row.linen: row.nnx for row in rows}
    assert names["params/inner/out_/kernel"] == "inner/out_/kernel"
    assert names["params/inner/layers_0/bias"] == "inner/layers/0/bias"


def test_a_linen_module_and_its_dict_of_modules():
    """Only a dict's key may join the name before it."""
    layer = dense("x")["params"]["x"]
    joined = {"params": {"heads_left": layer}}
    model = nnx.Dict(heads=nnx.Dict(left=nnx.Linear(3, 4, rngs=nnx.Rngs(0))))
    assert len(mapping.table(joined, model)) == 2
    assert len(mapping.table({"params": {"heads": {"left": layer}}}, model)) == 2

    class Heads(nnx.Module):
        def __init__(self):
            self.left = nnx.Linear(3, 4, rngs=nnx.Rngs(0))

    with pytest.raises(MappingError, match='"heads_left": "heads/left"'):
        mapping.table(joined, nnx.Dict(heads=Heads()))


class Cell(nnx.Module):
    """Named as a cell of nnx, but with other gates, for all we know."""

    def __init__(self):
        self.dense_i = nnx.Linear(3, 16, use_bias=False, rngs=nnx.Rngs(0))
        self.dense_h = nnx.Linear(4, 16, rngs=nnx.Rngs(0))


def lstm_variables():
    shapes = jax.eval_shape(
        nn.OptimizedLSTMCell(4).init,
        jax.random.key(0),
        (jnp.ones(4), jnp.ones(4)),
        jnp.ones(3),
    )
    return distinct_values(shapes)


def test_a_cell_of_the_users_own_is_not_merged():
    with pytest.raises(MappingError, match="no nnx leaf takes"):
        mapping.table(lstm_variables(), Cell())
    state = nnx.state(Cell())
    literal = {"params": nnx.to_pure_dict(state)}
    rows = mapping.table(literal, state)
    assert {row.linen for row in rows} == {f"params/{row.nnx}" for row in rows}


def lstm():
    return nnx.eval_shape(lambda: nnx.OptimizedLSTMCell(3, 4, rngs=nnx.Rngs(0)))


def test_the_gates_of_a_cell_lie_side_by_side():
    variables = lstm_variables()
    gates = [variables["params"][gate]["kernel"] for gate in ("hi", "hf", "hg", "ho")]
    model = mapping.to_nnx(variables, lstm())
    np.testing.assert_array_equal(model.dense_h.kernel[...], np.hstack(gates))
    row = next(r for r in mapping.table(variables, model) if "ig" in r.linen)
    assert row == Row("params/ig/kernel", "dense_i/kernel", (3, 4), "float32", (8, 12))


def test_a_part_of_a_merged_leaf_is_wrong():
    variables = lstm_variables()
    variables["params"]["ig"]["kernel"] = jnp.ones((3, 5))
    del variables["params"]["ho"]["bias"]
    with pytest.raises(MappingError) as error:
        mapping.table(variables, lstm())
    message = str(error.value)
    expected = (
        "ig/kernel (3, 5) float32  ->  dense_i/kernel (3, 16) float32, part 3 of 4"
    )
    assert expected in message
    assert "dense_h/bias (16,) float32 (looked for params/ho/bias)" in message


@pytest.mark.parametrize("kind", [lambda model: model, nnx.state])
def test_a_cell_below_an_automatic_name(kind):
    variables = {"params": {"OptimizedLSTMCell_0": lstm_variables()["params"]}}
    model = kind(nnx.Dict(rnn=nnx.RNN(lstm())))
    with pytest.raises(MappingError) as error:
        mapping.table(variables, model)
    assert '{\n        "OptimizedLSTMCell_0": "rnn/cell",\n    }' in str(error.value)


def test_a_rename_of_a_merged_layer_is_taken_at_its_word():
    variables = lstm_variables()
    with pytest.raises(MappingError, match=r"looked for params/fused/kernel\)"):
        mapping.table(variables, lstm(), rename={"fused": "dense_i"})


def test_merged_leaves_keep_their_boxes():
    variables = lstm_variables()
    boxed = jax.tree.map(
        lambda leaf: nn.Partitioned(leaf, ("in", "out")[-leaf.ndim :]), variables
    )
    back = mapping.to_linen(mapping.to_nnx(boxed, lstm()), boxed)
    assert jax.tree.structure(back) == jax.tree.structure(boxed)
    jax.tree.map(np.testing.assert_array_equal, back, boxed)
    assert back["params"]["if"]["kernel"].names == ("in", "out")


def test_merged_numpy_leaves_are_not_cast():
    variables = jax.tree.map(np.float64, lstm_variables())
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape), nnx.state(lstm()))
    filled = mapping.to_nnx(variables, state)
    assert filled["dense_h"]["kernel"].dtype == np.float64


def test_a_shared_module_is_one_in_linen():
    with nnx.set_graph_mode(True):
        layer = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        model = nnx.Dict(fc1=layer, fc2=layer)
        filled = mapping.to_nnx(distinct_values(dense("fc1")), model)
        assert filled.fc1 is filled.fc2
        assert mapping.to_linen(filled, dense("fc1"))["params"].keys() == {"fc1"}
        with pytest.raises(MappingError, match='"fc2": "fc1"'):
            mapping.table(dense("fc2"), model)


TWO_COLLECTIONS = {
    "params": {"x": jnp.ones(2)},
    "batch_stats": {"x": jnp.zeros(2)},
}


def test_one_path_in_two_collections():
    model = nnx.Dict(a=nnx.BatchStat(jnp.ones(2)), b=nnx.Param(jnp.ones(2)))
    with pytest.raises(MappingError) as error:
        mapping.table(TWO_COLLECTIONS, model)
    rename = eval(str(error.value).split("rename=")[1])
    assert rename == {"batch_stats/x": "a", "params/x": "b"}
    filled = mapping.to_nnx(TWO_COLLECTIONS, model, rename=rename)
    assert filled.a[0] == 0
    assert filled.b[0] == 1
    back = mapping.to_linen(filled, TWO_COLLECTIONS, rename=rename)
    jax.tree.map(np.testing.assert_array_equal, back, TWO_COLLECTIONS)


def test_one_attribute_cannot_be_of_two_collections():
    model = nnx.Dict(x=nnx.Param(jnp.ones(2)))
    with pytest.raises(MappingError, match=r"takes:\n    batch_stats/x \(2,\) float32"):
        mapping.table(TWO_COLLECTIONS, model)


def test_a_linen_module_named_as_a_collection():
    model = nnx.Dict(weights=nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    rows = mapping.table(dense("params"), model, rename={"params": "weights"})
    assert rows[0].linen == "params/params/bias"


NO_LEAVES = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
LINEAR = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
PARAMS = dense("x")["params"]["x"]


@pytest.mark.parametrize(
    ("variables", "model", "message"),
    [
        ({}, LINEAR, "the Linen variables hold no leaves, .* collections params"),
        ({"params": {}}, LINEAR, "the Linen variables hold no leaves"),
        ({"params": PARAMS}, NO_LEAVES, "the nnx model holds no leaves$"),
        ({"fc": PARAMS}, LINEAR, r"collections fc, .* collections params; .*\.init"),
        (PARAMS, LINEAR, r"outside a collection .*\n    bias .*\n    kernel \(3, 4\)"),
        ({"params": {"a/b": 0, "a": {"b": 1}}}, LINEAR, "path params/a/b"),
        ({"params": PARAMS}, nnx.Dict(a=nnx.Param(1.0)), r"no arrays:\n    a is 1.0"),
    ],
)
def test_one_side_is_empty_or_of_another_form(variables, model, message):
    with pytest.raises(MappingError, match=message):
        mapping.table(variables, model)


def test_nothing_corresponds_to_nothing():
    assert mapping.table({}, NO_LEAVES) == []
    assert mapping.to_linen(NO_LEAVES, {}) == {}


@pytest.mark.parametrize(
    ("variables", "model", "message"),
    [
        (nn.Dense(4), LINEAR, r"variables are a Dense; .* module.init\(key, x\)"),
        (nnx.state(LINEAR), LINEAR, "variables are a State;"),
        (
            {"params": PARAMS},
            nn.Dense(4),
            "nnx model is a Dense; it takes an nnx.Module",
        ),
        ({"params": PARAMS}, nnx.split(LINEAR), "nnx model is a tuple;"),
    ],
)
def test_another_kind_of_thing(variables, model, message):
    with pytest.raises(TypeError, match=message):
        mapping.table(variables, model)


def test_an_abstract_leaf_has_no_value_to_give():
    abstract = nnx.eval_shape(lambda: nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    with pytest.raises(MappingError, match=r"nnx leaves without a value.*\n    bias"):
        mapping.to_linen(abstract, {"params": PARAMS})
    shapes = jax.eval_shape(lambda: {"params": PARAMS})
    with pytest.raises(MappingError, match=r"Linen leaves without.*\n    params/bias"):
        mapping.to_nnx(shapes, LINEAR)


def test_flatten_keeps_every_field():
    class Output(NamedTuple):
        logits: int
        loss: int

    assert flatten(Output(1, 2)) == {"logits": 1, "loss": 2}
    assert flatten(nn.Partitioned(3, ("in",))) == {"": 3}
