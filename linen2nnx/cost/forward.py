"""Benchmarks of models that are applied: as they are, or after an edit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from linen2nnx import mapping
from linen2nnx.cost.arms import (
    EAGER,
    EDIT,
    JITTED,
    TRANSFORMED,
    WIDTH,
    Benchmark,
    Idiom,
    anew,
)
from linen2nnx.cost.paired import LIMIT, REFERENCE

CALL: Idiom = "model(x)", None
ASSIGNMENT: Idiom = "attribute assignment", None
SPLIT_MAP_MERGE: list[Idiom] = [
    ("split/map/merge", "graph"),
    ("split/map/merge", "tree"),
]


def random_input() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (WIDTH,))


@dataclass(frozen=True, kw_only=True)
class _Models:
    """Models on both sides, that are applied to the same inputs.

    Attributes:
        variables: the weights of each Linen model.
        create: creates the nnx models that hold them, in the same order.
        inputs: arrays; by default one of shape (WIDTH,).
        rename: as for `mapping.table`.
    """

    variables: tuple[Mapping[str, Any], ...]
    create: Callable[[], tuple[nnx.Module, ...]]
    inputs: tuple[Any, ...] = field(default_factory=lambda: (random_input(),))
    rename: Mapping[str, str] | None = None

    def models(self) -> tuple[Any, ...]:
        """New nnx models, since most idioms edit theirs in place."""
        targets = nnx.eval_shape(self.create)
        return tuple(
            mapping.to_nnx(variables, target, rename=self.rename)
            for variables, target in zip(self.variables, targets)
        )

    def call(self, what: str, idiom: str) -> Callable[[], Any]:
        if what == JITTED:
            function, arguments = self.program(idiom)
        elif idiom == REFERENCE:
            function, arguments = self.linen, (*self.variables, *self.inputs)
        elif idiom == LIMIT:
            function, arguments = self.plain, (*self.plain_weights(), *self.inputs)
        else:
            function, arguments = self.eager(idiom), (*self.models(), *self.inputs)
        return lambda: function(*arguments)

    def program(self, idiom: str) -> tuple[Any, tuple[Any, ...]]:
        if idiom == REFERENCE:
            return jax.jit(anew(self.linen)), (*self.variables, *self.inputs)
        if idiom == LIMIT:
            return jax.jit(anew(self.plain)), (*self.plain_weights(), *self.inputs)
        models = self.models()
        if idiom == "nnx.jit":
            return nnx.jit(anew(self.nnx)), (*models, *self.inputs)
        if idiom == "nnx.cached_partial":
            return nnx.cached_partial(nnx.jit(anew(self.pure)), *models), self.inputs
        if idiom == "nnx.jit_partial":
            return nnx.jit_partial(anew(self.nnx), *models, graph=False), self.inputs
        graphdefs, states = zip(*map(nnx.split, models))
        if idiom == "held pure dict":
            states = tuple(map(nnx.to_pure_dict, states))

        def apply_merged(*arguments):
            n = len(graphdefs)
            return self.nnx(*map(nnx.merge, graphdefs, arguments[:n]), *arguments[n:])

        return jax.jit(apply_merged), (*states, *self.inputs)


@dataclass(frozen=True, kw_only=True)
class Forward(_Models):
    """Models that are applied as they are.

    Attributes:
        linen: takes `variables` and the inputs, returns an array.
        nnx: takes the models and the inputs, returns the same array.
        plain: takes what `weights` are and the inputs, returns the same array.
        weights: a pytree of arrays for each model.
    """

    linen: Callable[..., Any]
    nnx: Callable[..., Any]
    plain: Callable[..., Any]
    weights: tuple[Any, ...]

    def plain_weights(self) -> tuple[Any, ...]:
        return self.weights

    def eager(self, idiom: str) -> Callable[..., Any]:
        return self.nnx

    @property
    def pure(self) -> Callable[..., Any]:
        return self.nnx


def forward_benchmark(
    problem: str,
    make_pair: Callable[[Any], Forward],
    layers: Sequence[int | None] = (None,),
) -> Benchmark:
    """The benchmark of a problem that applies a model."""
    eager = [(REFERENCE, None), CALL, (LIMIT, None)]
    return Benchmark(problem, make_pair, {**TRANSFORMED, EAGER: eager}, layers)


@dataclass(frozen=True, kw_only=True)
class Edited(_Models):
    """Models that are edited, and the edited one applied.

    Attributes:
        module: the Linen module that is applied to the edited variables.
        linen_edit: takes `variables`, returns the edited ones.
        nnx_edits: by name of the idiom; each takes the models and returns the edited
            one. The first is the problem's own.
        pure_edit: the one of them that leaves the model's structure alone.
        plain_edit: the same with lists of `(kernel, bias)`.
        edited_layer: the index of a layer that the edit sets; None if the model is one.
    """

    module: Any
    linen_edit: Callable[..., Any]
    nnx_edits: Mapping[str, Callable[..., Any]]
    pure_edit: Callable[..., Any]
    plain_edit: Callable[..., Any]
    edited_layer: int | None = None

    def linen(self, *arguments):
        *variables, x = arguments
        return self.module.apply(self.linen_edit(*variables), x)

    def nnx(self, *arguments):
        return self.eager(next(iter(self.nnx_edits)))(*arguments)

    def pure(self, *arguments):
        *models, x = arguments
        return self.pure_edit(*models)(x)

    def plain(self, *arguments):
        *layers, x = arguments
        return plain_apply(self.plain_edit(*layers), x)

    def plain_weights(self) -> tuple[Any, ...]:
        return tuple(map(plain_layers, self.variables))

    def eager(self, idiom: str) -> Callable[..., Any]:
        def edit_and_apply(*arguments):
            *models, x = arguments
            return self.nnx_edits[idiom](*models)(x)

        return edit_and_apply

    def call(self, what: str, idiom: str) -> Callable[[], Any]:
        if what != EDIT:
            return super().call(what, idiom)
        layer = self.edited_layer
        if idiom == REFERENCE:
            edit, variables = self.linen_edit, self.variables

            def kernel():
                params = edit(*variables)["params"]
                return (params if layer is None else params[f"layers_{layer}"])[
                    "kernel"
                ]

            return kernel
        if idiom == LIMIT:
            edit, layers = self.plain_edit, self.plain_weights()
            return lambda: edit(*layers)[layer or 0][0]
        edit, models = self.nnx_edits[idiom], self.models()
        if layer is None:
            return lambda: edit(*models).kernel.get_raw_value()
        return lambda: edit(*models).layers[layer].kernel.get_raw_value()


def edit_benchmark(
    problem: str,
    make_pair: Callable[[Any], Edited],
    edits: Sequence[Idiom],
    layers: Sequence[int | None] = (None,),
) -> Benchmark:
    """The benchmark of a problem that edits a model.

    Args:
        problem: its name.
        make_pair: the pair with that number of layers.
        edits: name and mode of the nnx idioms of the edit itself, run eagerly.
        layers: the numbers of layers; `[None]` if the problem has one layer only.
    """
    idioms = [(REFERENCE, None), *edits, (LIMIT, None)]
    whats = {**TRANSFORMED, EAGER: idioms, EDIT: idioms}
    return Benchmark(problem, make_pair, whats, layers)


def plain_layers(variables: Mapping[str, Any]) -> list[tuple[jax.Array, jax.Array]]:
    params = variables["params"]
    if "kernel" in params:
        return [(params["kernel"], params["bias"])]
    layers = [params[f"layers_{i}"] for i in range(len(params))]
    return [(layer["kernel"], layer["bias"]) for layer in layers]


def plain_apply(layers: list[tuple[jax.Array, jax.Array]], x: jax.Array) -> jax.Array:
    for kernel, bias in layers:
        x = jnp.dot(x, kernel) + bias
    return x
