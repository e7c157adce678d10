"""Any tree of modules survives both directions of the mapping.

One description builds the Linen and the nnx side, with real flax layers. It has named
modules, lists, dicts, Sequential, scanned stacks, shared modules, names that Python
reserves, custom collections, Variables that hold a pytree and partitioned kernels.
"""

import functools
import keyword

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict, freeze
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import HealthCheck, assume, given, settings

from linen2nnx import mapping
from linen2nnx.leaves import flatten
from linen2nnx.mapping import MappingError


class Steps(nnx.Variable):
    """A Variable type of the user's own."""


nnx.register_variable_name("steps", Steps)

X = jax.ShapeDtypeStruct((1, 2), jnp.float32)
STATE = jax.ShapeDtypeStruct((1, 3), jnp.float32)

# Linen layer, nnx layer, inputs
LAYERS = {
    "dense": (lambda: nn.Dense(3), lambda rngs: nnx.Linear(2, 3, rngs=rngs), X),
    "partitioned": (
        lambda: nn.Dense(
            2,
            use_bias=False,
            kernel_init=nn.with_partitioning(nn.initializers.ones, ("in", "out")),
        ),
        lambda rngs: nnx.Linear(2, 2, use_bias=False, rngs=rngs),
        X,
    ),
    "embed": (
        lambda: nn.Embed(5, 2),
        lambda rngs: nnx.Embed(5, 2, rngs=rngs),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    ),
    "batch norm": (
        lambda: nn.BatchNorm(use_running_average=True),
        lambda rngs: nnx.BatchNorm(2, rngs=rngs),
        X,
    ),
    "simple cell": (
        lambda: nn.SimpleCell(3),
        lambda rngs: nnx.SimpleCell(2, 3, rngs=rngs),
        STATE,
        X,
    ),
    "lstm": (
        lambda: nn.OptimizedLSTMCell(3),
        lambda rngs: nnx.OptimizedLSTMCell(2, 3, rngs=rngs),
        (STATE, STATE),
        X,
    ),
    "spectral norm": (
        lambda: nn.SpectralNorm(nn.Dense(3)),
        lambda rngs: nnx.SpectralNorm(nnx.Linear(2, 3, rngs=rngs), rngs=rngs),
        X,
    ),
    "sequential": (
        lambda: nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(1)]),
        lambda rngs: nnx.Sequential(
            nnx.Linear(2, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 1, rngs=rngs)
        ),
        X,
    ),
    "dropout": (
        lambda: nn.Dropout(0.5, deterministic=True),
        lambda rngs: nnx.Dropout(0.5, rngs=rngs),
        X,
    ),
}
VARIABLES = {
    "param": ("params", nnx.Param, lambda: jnp.zeros((2, 3))),
    "steps": ("steps", Steps, lambda: jnp.zeros((), jnp.int32)),
    "cache": (
        "cache",
        nnx.Cache,
        lambda: {"key": jnp.zeros(2), "value": (jnp.zeros(1), jnp.zeros(2))},
    ),
}

layers = st.sampled_from([*LAYERS]).map(lambda name: ("layer", name))
variables = st.sampled_from([*VARIABLES]).map(lambda name: ("variable", name))
stacks = st.tuples(st.just("scan"), layers)
shared = st.tuples(st.just("shared"), layers)


def named(children, keys, min_size):
    items = st.dictionaries(
        st.sampled_from(keys), children, min_size=min_size, max_size=3
    )
    return items.map(lambda items: tuple(items.items()))


def modules(children, min_size=1):
    members = named(children, ["a", "b", "if", "out_", "kernel"], min_size)
    return st.tuples(st.just("module"), members)


def containers(children):
    lists = st.lists(children, min_size=1, max_size=2).map(tuple)
    return st.one_of(
        modules(children | variables | shared),
        st.tuples(st.just("list"), lists),
        st.tuples(st.just("dict"), named(children, ["left", "if", "7"], 1)),
    )


small = containers(layers | stacks)
trees = modules(containers(small | layers) | small | variables | shared | stacks, 2)


def nnx_name(name):
    return f"{name}_" if keyword.iskeyword(name) else name


class LinenTree(nn.Module):
    members: tuple

    def setup(self):
        for name, (kind, content) in self.members:
            if kind == "variable":
                collection, _, create = VARIABLES[content]
                if collection == "params":
                    made = self.param(name, lambda key, create=create: create())
                else:
                    made = self.variable(collection, name, create)
            else:
                made = linen((kind, content))
            setattr(self, name, made)
            if kind == "shared":
                setattr(self, f"{name}_again", made)

    def __call__(self):
        for name, node in self.members:
            if node[0] == "shared":
                call(getattr(self, name), node[1])
                call(getattr(self, f"{name}_again"), node[1])
            else:
                call(getattr(self, name), node)


class LinenScanned(nn.Module):
    node: tuple

    def setup(self):
        self.layer = linen(self.node)

    def __call__(self, carry, _):
        call(self.layer, self.node)
        return carry, None


def linen(node):
    kind, content = node
    if kind == "layer":
        return LAYERS[content][0]()
    if kind == "shared":
        return linen(content)
    if kind == "list":
        return [linen(child) for child in content]
    if kind == "dict":
        return {key: linen(child) for key, child in content}
    if kind == "module":
        return LinenTree(content)
    return nn.scan(
        LinenScanned,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        length=2,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(content)


def call(made, node):
    """Linen makes the leaves of a layer when it is called."""
    kind, content = node
    if kind == "layer":
        _, _, *shapes = LAYERS[content]
        inputs = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        made(*inputs, **({"update_stats": True} if content == "spectral norm" else {}))
    elif kind == "list":
        for child, child_node in zip(made, content):
            call(child, child_node)
    elif kind == "dict":
        for key, child_node in content:
            call(made[key], child_node)
    elif kind == "module":
        made()
    elif kind == "scan":
        made(jnp.zeros(()), None)


class NNXTree(nnx.Module):
    def __init__(self, members, rngs):
        for name, node in members:
            made = ours(node, rngs)
            setattr(self, nnx_name(name), made)
            if node[0] == "shared" and in_graph_mode():
                setattr(self, f"{name}_again", made)


class NNXScanned(nnx.Module):
    def __init__(self, node, rngs):
        self.layer = ours(node, rngs)


def in_graph_mode():
    return nnx.set_graph_mode.current_value()


def ours(node, rngs):
    kind, content = node
    if kind == "layer":
        return LAYERS[content][1](rngs)
    if kind == "variable":
        _, variable, create = VARIABLES[content]
        return variable(create())
    if kind == "shared":
        return ours(content, rngs)
    if kind == "list":
        return nnx.List(ours(child, rngs) for child in content)
    if kind == "dict":
        return nnx.Dict({key: ours(child, rngs) for key, child in content})
    if kind == "module":
        return NNXTree(content, rngs)

    @nnx.split_rngs(splits=2)
    @nnx.vmap(axis_size=2)
    def stack(rngs):
        return NNXScanned(content, rngs)

    return stack(rngs)


def places(node, linen_path="", nnx_path=""):
    """The Linen and the nnx path of every layer and Variable."""
    kind, content = node
    if kind in ("layer", "variable", "shared"):
        yield linen_path, nnx_path
    elif kind == "scan":
        yield f"{linen_path}/layer", f"{nnx_path}/layer"
    elif kind == "module":
        for name, child in content:
            yield from places(
                child, f"{linen_path}/{name}", f"{nnx_path}/{nnx_name(name)}"
            )
    else:
        children = enumerate(content) if kind == "list" else content
        for key, child in children:
            yield from places(child, f"{linen_path}_{key}", f"{nnx_path}/{key}")


@functools.cache
def linen_shapes(members):
    """The same in both modes of nnx, which draw the same trees."""
    return jax.eval_shape(LinenTree(members).init, jax.random.key(0))


def both(tree, kind=dict):
    """Linen variables and an nnx model of one description, abstract."""
    _, members = tree
    shapes = jax.tree.map(lambda leaf: leaf, linen_shapes(members))
    model = nnx.eval_shape(lambda: NNXTree(members, nnx.Rngs(0)))
    return freeze(shapes) if kind is FrozenDict else shapes, model


def distinct_values(tree):
    """Another value in every entry of every leaf; RNG state stays."""
    start = 0

    def draw(leaf):
        nonlocal start
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        values = np.arange(start, start + leaf.size, dtype=leaf.dtype)
        start += leaf.size
        return values.reshape(leaf.shape)

    return jax.tree.map(draw, tree)


def without_rngs(model):
    state = nnx.state(model) if isinstance(model, nnx.Module) else model
    return nnx.split_state(state, nnx.RngState, ...)[1]


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def entries(tree):
    return sorted(v for leaf in jax.tree.leaves(tree) for v in np.ravel(leaf).tolist())


def with_each(leaf, shape=lambda shape: shape, dtype=lambda dtype: dtype):
    return jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(shape(array.shape), dtype(array.dtype)), leaf
    )


def as_text(path):
    return "/".join(
        as_text(key) if isinstance(key, tuple) else str(key) for key in path
    )


def renamed(variables, tree):
    """The variables with names as `@nn.compact` gives them, and the rename for them."""
    paths = [(linen[1:].split("/"), ours[1:]) for linen, ours in places(tree)]
    leaves, rename = {}, {}
    for (collection, *path), leaf in flatten_dict(variables).items():
        for index, (place, nnx_path) in enumerate(paths):
            if path[: len(place)] == place:
                name = f"Auto_{index}"
                rename[name] = nnx_path
                leaves[collection, name, *path[len(place) :]] = leaf
    return unflatten_dict(leaves), rename


any_tree = settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[*HealthCheck],
)


@any_tree
@given(trees, st.sampled_from([dict, FrozenDict]))
def test_both_directions_are_inverses(nnx_mode, tree, kind):
    shapes, model = both(tree, kind)

    values = distinct_values(shapes)
    filled = mapping.to_nnx(values, model)
    assert entries(without_rngs(filled)) == entries(values)
    assert_same(mapping.to_linen(filled, shapes), values)

    state = distinct_values(without_rngs(model))
    back = mapping.to_linen(state, shapes)
    assert type(back) is kind
    assert_same(mapping.to_nnx(back, state), state)

    rows = mapping.table(shapes, model)
    assert rows == mapping.table(shapes, nnx.state(model))
    assert sorted(row.linen for row in rows) == sorted(flatten(shapes))
    for row in rows:
        _, _, linen_path = row.linen.partition("/")
        assert any(
            f"/{linen_path}/".startswith(f"{linen}/")
            and f"/{row.nnx}/".startswith(f"{ours}/")
            for linen, ours in places(tree)
        )


@any_tree
@given(trees, st.data())
def test_what_does_not_correspond_is_an_error(nnx_mode, tree, data):
    shapes, model = both(tree)
    rows = mapping.table(shapes, model)
    assume(rows)

    def assert_names(text, linen, ours):
        with pytest.raises(MappingError) as error:
            mapping.table(linen, ours)
        assert text in str(error.value) or "no leaves" in str(error.value)

    leaves = flatten_dict(shapes)
    key = data.draw(st.sampled_from(sorted(leaves)))
    leaf = leaves[key]
    wrong = {
        "dropped": {k: v for k, v in leaves.items() if k != key},
        "doubled": {**leaves, (*key[:-1], f"{key[-1]}_more"): leaf},
        "reshaped": {**leaves, key: with_each(leaf, shape=lambda shape: (*shape, 2))},
        "cast": {**leaves, key: with_each(leaf, dtype=lambda _: jnp.float16)},
    }
    for changed in wrong.values():
        assert_names("/".join(key), unflatten_dict(changed), model)
        assert_names("/".join(key), unflatten_dict(changed), nnx.state(model))

    row = data.draw(st.sampled_from(rows))
    state = dict(nnx.to_flat_state(without_rngs(model)))
    key = next(k for k in state if f"{row.nnx}/".startswith(f"{as_text(k)}/"))
    del state[key]
    assert_names(row.linen, shapes, nnx.from_flat_state(state))


@any_tree
@given(trees)
def test_automatic_names_need_a_rename_which_the_error_prints(tree):
    shapes, model = both(tree)
    rows = mapping.table(shapes, model)
    assume(rows)
    variables, rename = renamed(shapes, tree)
    renamed_rows = mapping.table(variables, model, rename=rename)
    assert [row.nnx for row in rows] == [row.nnx for row in renamed_rows]
    with pytest.raises(MappingError) as error:
        mapping.table(variables, model)
    pasted = eval(str(error.value).split("rename=")[1])
    assert len(mapping.table(variables, model, rename=pasted)) == len(rows)
