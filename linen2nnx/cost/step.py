"""Timing models that are trained: a step that carries its state to the next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linen2nnx.cost.arms import (
    COMPILE,
    JITTED,
    TRACE,
    TRANSFORMED,
    Benchmark,
    Idiom,
    anew,
)
from linen2nnx.cost.paired import LIMIT, REFERENCE
from linen2nnx.parity.differences import Tolerance
from linen2nnx.parity.pair import Pair

CARRY_STATE = (REFERENCE, LIMIT, "held pure dict", "jax.jit on split State")
COMPILED_IDIOMS: list[Idiom] = [
    (REFERENCE, None),
    ("held pure dict", None),
    ("nnx.jit", "tree"),
    (LIMIT, None),
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """The cost of a training step on both sides, from the same weights, on one batch.

    The targets are the inputs in another order of rows: the models' outputs are as wide
    as their inputs.

    Attributes:
        linen: the step, not jitted, `(state, x, y) -> (state, loss)`.
        state: what `linen` takes first, made from the pair.
        nnx: the step, not jitted, `(model, optimizer, x, y) -> loss`, which updates
            both in place.
        optimizer: makes the optimizer of a model.
        plain: the step on arrays alone, `(state, x, y) -> (state, loss)`.
        plain_state: what `plain` takes first, made from the pair.
        size: of the pair with that number of layers.
        layers: the numbers of layers; `[None]` if the number does not vary.
        draws_keys: as for `linen2nnx.cost.arms.Benchmark`.
        limit_tolerance: likewise.
    """

    linen: Callable[..., Any]
    state: Callable[[Pair], Any]
    nnx: Callable[..., Any]
    optimizer: Callable[[Any], Any]
    plain: Callable[..., Any]
    plain_state: Callable[[Pair], Any]
    size: Callable[[Any], tuple[Any, ...]]
    layers: Sequence[int | None] = (None,)
    draws_keys: bool = False
    limit_tolerance: Tolerance | None = None

    def benchmark(self, problem: str, pair: Callable[..., Pair]) -> Benchmark:
        """What is timed of a problem with that name and pair."""
        return Benchmark(
            problem,
            lambda layers: _Trained(pair(*self.size(layers)), self),
            {
                JITTED: TRANSFORMED[JITTED],
                TRACE: TRANSFORMED[TRACE],
                COMPILE: COMPILED_IDIOMS,
            },
            self.layers,
            checked_calls=3,
            draws_keys=self.draws_keys,
            limit_tolerance=self.limit_tolerance,
        )


@dataclass(frozen=True, eq=False)
class _Trained:
    """A step of the models of a pair."""

    pair: Pair
    cost: Step

    @property
    def batch(self) -> tuple[jax.Array, jax.Array]:
        (x,) = self.pair.arrays
        return x, jnp.roll(x, 1, axis=0)

    def call(self, what: str, idiom: str) -> Callable[[], Any]:
        """One more step, which returns its loss."""
        function, arguments = self.program(idiom)
        if idiom not in CARRY_STATE:
            return lambda: function(*arguments)
        state, *batch = arguments

        def step() -> Any:
            nonlocal state
            state, loss = function(state, *batch)
            return loss

        return step

    def program(self, idiom: str) -> tuple[Any, tuple[Any, ...]]:
        """The transformed function of an idiom, and the arguments that it takes."""
        batch, nnx_step = self.batch, self.cost.nnx
        if idiom == REFERENCE:
            return jax.jit(anew(self.cost.linen)), (self.cost.state(self.pair), *batch)
        if idiom == LIMIT:
            state = self.cost.plain_state(self.pair)
            return jax.jit(anew(self.cost.plain)), (state, *batch)
        model = self.pair.model
        trained = model, self.cost.optimizer(model)
        if idiom == "nnx.jit":
            return nnx.jit(anew(nnx_step)), (*trained, *batch)
        if idiom == "nnx.cached_partial":
            return nnx.cached_partial(nnx.jit(anew(nnx_step)), *trained), batch
        if idiom == "nnx.jit_partial":
            return nnx.jit_partial(anew(nnx_step), *trained, graph=False), batch
        graphdef, state = nnx.split(trained)
        is_pure = idiom == "held pure dict"

        def held(state: Any) -> Any:
            return nnx.to_pure_dict(state) if is_pure else state

        def step(state: Any, x: Any, y: Any) -> Any:
            model, optimizer = nnx.merge(graphdef, state)
            loss = nnx_step(model, optimizer, x, y)
            return held(nnx.state((model, optimizer))), loss

        return jax.jit(step), (held(state), *batch)


def plain_dense(
    layer: dict[str, jax.Array], x: Float[Array, "*rows din"]
) -> Float[Array, "*rows features"]:
    """A dense layer: x of shape (..., din) gives (..., features)."""
    return jnp.dot(x, layer["kernel"]) + layer["bias"]


def plain_batch_norm(
    norm: dict[str, jax.Array],
    mean: Float[Array, "n"],
    var: Float[Array, "n"],
    x: Float[Array, "rows n"],
) -> tuple[Float[Array, "rows n"], Float[Array, "n"], Float[Array, "n"]]:
    """In train mode: the output, and the running mean and variance after it."""
    batch_mean = x.mean(0)
    batch_var = jnp.maximum(0.0, jnp.square(x).mean(0) - jnp.square(batch_mean))
    scale = jax.lax.rsqrt(batch_var + 1e-5) * norm["scale"]
    output = (x - batch_mean) * scale + norm["bias"]
    return output, 0.99 * mean + 0.01 * batch_mean, 0.99 * var + 0.01 * batch_var


def plain_dropout(
    key: jax.Array, rate: float, x: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """What is kept is divided by the share that is."""
    keep = 1.0 - rate
    return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, 0.0)
