"""Timing models that are applied: as they are, or after an edit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linen2nnx.cost.arms import (
    EAGER,
    EDIT,
    JITTED,
    TRANSFORMED,
    Benchmark,
    Idiom,
    anew,
)
from linen2nnx.cost.paired import LIMIT, REFERENCE
from linen2nnx.leaves import flatten
from linen2nnx.modes import MODES
from linen2nnx.parity.pair import Pair

CALL: Idiom = "model(x)", None
ASSIGNMENT = "attribute assignment"
SPLIT_MAP_MERGE = "split/map/merge"


@dataclass(frozen=True, kw_only=True, eq=False)
class Forward:
    """The cost of applying the models of a pair.

    Attributes:
        plain: what they compute, of arrays without a framework: `(weights, *inputs)`.
        weights: what `plain` takes first, made from the Linen variables.
        size: of the pair with that number of layers.
        layers: the numbers of layers; `[None]` if the number does not vary.
    """

    plain: Callable[..., Any]
    weights: Callable[[Any], Any]
    size: Callable[[Any], tuple[Any, ...]]
    layers: Sequence[int | None] = (None,)

    def benchmark(self, problem: str, pair: Callable[..., Pair]) -> Benchmark:
        """What is timed of a problem with that name and pair."""
        eager: list[Idiom] = [(REFERENCE, None), CALL, (LIMIT, None)]
        return Benchmark(
            problem,
            lambda layers: _Applied((pair(*self.size(layers)),), self),
            {**TRANSFORMED, EAGER: eager},
            self.layers,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Edited:
    """The cost of an edit, and of applying the edited model of a pair to one input.

    Attributes:
        linen: takes variables and returns edited ones; those of `source` come first.
        nnx: by idiom, takes a model and returns the edited one, the same or a new one;
            likewise. The first is the one that is jitted by `nnx.jit`.
        plain: the same edit of a list of `(kernel, bias)`, in the order of the layers;
            likewise.
        pure: of the idioms, the one that leaves the structure of the model alone.
        edited: the Linen and the nnx path of an array that the edit sets, of the model
            with that number of layers.
        weights: the list that `plain` takes, made from the Linen variables.
        size: of the pair with that number of layers.
        source: likewise of a second pair, whose models the edit reads; None has none.
        layers: the numbers of layers; `[None]` if the number does not vary.
    """

    linen: Callable[..., Any]
    nnx: Mapping[str, Callable[..., Any]]
    plain: Callable[..., Any]
    pure: str = SPLIT_MAP_MERGE
    edited: Callable[[Any], tuple[str, str]] = lambda layers: ("kernel", "kernel")
    weights: Callable[[Any], Any] = field(default_factory=lambda: plain_layers)
    size: Callable[[Any], tuple[Any, ...]]
    source: Callable[[Any], tuple[Any, ...]] | None = None
    layers: Sequence[int | None] = (None,)

    def benchmark(self, problem: str, pair: Callable[..., Pair]) -> Benchmark:
        """What is timed of a problem with that name and pair."""

        def at(layers: int | None) -> _Edited:
            pairs = [pair(*self.size(layers))]
            if self.source is not None:
                pairs.insert(0, replace(pair(*self.source(layers)), seed=1))
            return _Edited(tuple(pairs), self, layers)

        modes = {
            name: MODES if name == SPLIT_MAP_MERGE else (None,) for name in self.nnx
        }
        idioms: list[Idiom] = [
            (REFERENCE, None),
            *((name, mode) for name in self.nnx for mode in modes[name]),
            (LIMIT, None),
        ]
        return Benchmark(
            problem,
            at,
            {**TRANSFORMED, EAGER: idioms, EDIT: idioms},
            self.layers,
        )


@dataclass(frozen=True, eq=False)
class _Models:
    """The models of pairs, on both sides; the last is the one that is applied.

    Subclasses say what is called: `linen`, `nnx` and `plain` take what each pair holds
    first, and the inputs.
    """

    pairs: tuple[Pair, ...]

    def linen(self, *arguments: Any) -> Any:
        raise NotImplementedError

    def nnx(self, *arguments: Any) -> Any:
        raise NotImplementedError

    def pure(self, *arguments: Any) -> Any:
        return self.nnx(*arguments)

    def plain(self, *arguments: Any) -> Any:
        raise NotImplementedError

    def eager(self, idiom: str) -> Callable[..., Any]:
        return self.nnx

    @property
    def inputs(self) -> tuple[Any, ...]:
        return self.pairs[-1].arrays

    @property
    def variables(self) -> tuple[Any, ...]:
        return tuple(pair.variables for pair in self.pairs)

    @property
    def models(self) -> tuple[Any, ...]:
        return tuple(pair.model for pair in self.pairs)

    @property
    def weights(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def apply(self, variables: Any, *inputs: Any) -> Any:
        pair = self.pairs[-1]
        return pair.linen.apply(variables, *inputs, **pair.linen_kwargs)

    def run(self, model: Any, *inputs: Any) -> Any:
        return model(*inputs, **self.pairs[-1].nnx_kwargs)

    def call(self, what: str, idiom: str) -> Callable[[], Any]:
        """What an idiom does, as a function to be timed that returns arrays."""
        if what == JITTED:
            function, arguments = self.program(idiom)
        elif idiom == REFERENCE:
            function, arguments = self.linen, (*self.variables, *self.inputs)
        elif idiom == LIMIT:
            function, arguments = self.plain, (*self.weights, *self.inputs)
        else:
            function, arguments = self.eager(idiom), (*self.models, *self.inputs)
        return lambda: function(*arguments)

    def program(self, idiom: str) -> tuple[Any, tuple[Any, ...]]:
        """The transformed function of an idiom, and the arguments that it takes."""
        inputs = self.inputs
        if idiom == REFERENCE:
            return jax.jit(anew(self.linen)), (*self.variables, *inputs)
        if idiom == LIMIT:
            return jax.jit(anew(self.plain)), (*self.weights, *inputs)
        models = self.models
        if idiom == "nnx.jit":
            return nnx.jit(anew(self.nnx)), (*models, *inputs)
        if idiom == "nnx.cached_partial":
            return nnx.cached_partial(nnx.jit(anew(self.pure)), *models), inputs
        if idiom == "nnx.jit_partial":
            return nnx.jit_partial(anew(self.nnx), *models, graph=False), inputs
        graphdefs, states = zip(*map(nnx.split, models))
        if idiom == "held pure dict":
            states = tuple(map(nnx.to_pure_dict, states))

        def apply_merged(*arguments: Any) -> Any:
            n = len(graphdefs)
            return self.nnx(*map(nnx.merge, graphdefs, arguments[:n]), *arguments[n:])

        return jax.jit(apply_merged), (*states, *inputs)


@dataclass(frozen=True, eq=False)
class _Applied(_Models):
    """Models that are applied as they are."""

    cost: Forward

    def linen(self, *arguments: Any) -> Any:
        return self.apply(*arguments)

    def nnx(self, *arguments: Any) -> Any:
        return self.run(*arguments)

    def plain(self, *arguments: Any) -> Any:
        return self.cost.plain(*arguments)

    @cached_property
    def weights(self) -> tuple[Any, ...]:
        return tuple(map(self.cost.weights, self.variables))


@dataclass(frozen=True, eq=False)
class _Edited(_Models):
    """Models that are edited, and the edited one applied."""

    cost: Edited
    layers: int | None

    def linen(self, *arguments: Any) -> Any:
        *variables, x = arguments
        return self.apply(self.cost.linen(*variables), x)

    def nnx(self, *arguments: Any) -> Any:
        return self.eager(next(iter(self.cost.nnx)))(*arguments)

    def pure(self, *arguments: Any) -> Any:
        return self.eager(self.cost.pure)(*arguments)

    def plain(self, *arguments: Any) -> Any:
        *weights, x = arguments
        return plain_apply(self.cost.plain(*weights), x)

    @cached_property
    def weights(self) -> tuple[Any, ...]:
        return tuple(map(self.cost.weights, self.variables))

    def eager(self, idiom: str) -> Callable[..., Any]:
        edit = self.cost.nnx[idiom]

        def edit_and_apply(*arguments: Any) -> Any:
            *models, x = arguments
            return self.run(edit(*models), x)

        return edit_and_apply

    def call(self, what: str, idiom: str) -> Callable[[], Any]:
        """What an idiom does, as a function to be timed that returns arrays."""
        if what != EDIT:
            return super().call(what, idiom)
        linen_keys, nnx_keys = (p.split("/") for p in self.cost.edited(self.layers))
        if idiom == REFERENCE:
            linen, variables = self.cost.linen, self.variables

            def edited() -> Any:
                found = linen(*variables)["params"]
                for key in linen_keys:
                    found = found[key]
                return found

            return edited
        if idiom == LIMIT:
            plain, weights, layer = (
                self.cost.plain,
                self.weights,
                (self.layers or 1) - 1,
            )
            return lambda: plain(*weights)[layer][0]
        edit, models = self.cost.nnx[idiom], self.models
        steps = [int(key) if key.isdigit() else key for key in nnx_keys]

        def edited_variable() -> Any:
            found = edit(*models)
            for step in steps:
                found = found[step] if isinstance(step, int) else getattr(found, step)
            return found.get_raw_value()

        return edited_variable


Dense = tuple[Float[Array, "din features"], Float[Array, "features"]]


def plain_layers(variables: Mapping[str, Any]) -> list[Dense]:
    """Kernel and bias of a dense layer, or of each of `layers_0`, `layers_1`, ..."""
    params = flatten(variables["params"])
    if "kernel" in params:
        return [(params["kernel"], params["bias"])]
    return [
        (params[f"layers_{i}/kernel"], params[f"layers_{i}/bias"])
        for i in range(sum(name.endswith("/kernel") for name in params))
    ]


def plain_apply(
    layers: list[Dense], x: Float[Array, "din"]
) -> Float[Array, "features"]:
    """Dense layers one after the other, without a framework."""
    for kernel, bias in layers:
        x = jnp.dot(x, kernel) + bias
    return x
