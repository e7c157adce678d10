"""Benchmarks of models that are trained: a step that carries its state to the next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from linen2nnx.cost.arms import (
    COMPILE,
    JITTED,
    TRACE,
    TRANSFORMED,
    WIDTH,
    Benchmark,
    Idiom,
    anew,
)
from linen2nnx.cost.paired import LIMIT, REFERENCE
from linen2nnx.parity.differences import Tolerance

ROWS = 8
CARRY_STATE = (REFERENCE, LIMIT, "held pure dict", "jax.jit on split State")
COMPILED_IDIOMS: list[Idiom] = [
    (REFERENCE, None),
    ("held pure dict", None),
    ("nnx.jit", "tree"),
    (LIMIT, None),
]


def random_batch() -> tuple[jax.Array, jax.Array]:
    """Inputs and targets, both of shape (ROWS, WIDTH)."""
    return tuple(jax.random.normal(jax.random.key(i), (ROWS, WIDTH)) for i in (0, 1))


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step on both sides, from the same weights, on one batch.

    Attributes:
        linen: `(state, x, y) -> (state, loss)`.
        state: what `linen` takes first.
        nnx: `(model, optimizer, x, y) -> loss`, which updates both in place.
        create: creates the model, with the weights of `state`, and its optimizer.
        plain: `(state, x, y) -> (state, loss)` on arrays alone.
        plain_state: what `plain` takes first.
    """

    linen: Callable[..., Any]
    state: Any
    nnx: Callable[..., Any]
    create: Callable[[], tuple[nnx.Module, nnx.Optimizer]]
    plain: Callable[..., Any]
    plain_state: Any

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
        batch = random_batch()
        if idiom == REFERENCE:
            return jax.jit(anew(self.linen)), (self.state, *batch)
        if idiom == LIMIT:
            return jax.jit(anew(self.plain)), (self.plain_state, *batch)
        trained = self.create()
        if idiom == "nnx.jit":
            return nnx.jit(anew(self.nnx)), (*trained, *batch)
        if idiom == "nnx.cached_partial":
            return nnx.cached_partial(nnx.jit(anew(self.nnx)), *trained), batch
        if idiom == "nnx.jit_partial":
            return nnx.jit_partial(anew(self.nnx), *trained, graph=False), batch
        graphdef, state = nnx.split(trained)
        is_pure = idiom == "held pure dict"
        held = nnx.to_pure_dict if is_pure else lambda state: state

        def step(state, x, y):
            model, optimizer = nnx.merge(graphdef, state)
            loss = self.nnx(model, optimizer, x, y)
            return held(nnx.state((model, optimizer))), loss

        return jax.jit(step), (held(state), *batch)


def step_benchmark(
    problem: str,
    make_pair: Callable[[Any], Step],
    layers: Sequence[int | None] = (None,),
    *,
    draws_keys: bool = False,
    limit_tolerance: Tolerance | None = None,
) -> Benchmark:
    """The benchmark of a problem that trains a model; its first three losses are equal.

    Args:
        problem: its name.
        make_pair: the pair with that number of layers.
        layers: the numbers of layers; `[None]` if the number does not vary.
        draws_keys: as for `Benchmark`.
        limit_tolerance: likewise.
    """
    return Benchmark(
        problem,
        make_pair,
        {
            JITTED: TRANSFORMED[JITTED],
            TRACE: TRANSFORMED[TRACE],
            COMPILE: COMPILED_IDIOMS,
        },
        layers,
        most_traced=16,
        most_compiled=4,  # a step of four takes as long as a call of 64
        checked_calls=3,
        draws_keys=draws_keys,
        limit_tolerance=limit_tolerance,
    )


def plain_dense(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return jnp.dot(x, layer["kernel"]) + layer["bias"]


def plain_batch_norm(
    norm: dict[str, jax.Array], mean: jax.Array, var: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """In train mode: the output, and the running mean and variance after it."""
    batch_mean = x.mean(0)
    batch_var = jnp.maximum(0.0, jnp.square(x).mean(0) - jnp.square(batch_mean))
    scale = jax.lax.rsqrt(batch_var + 1e-5) * norm["scale"]
    output = (x - batch_mean) * scale + norm["bias"]
    return output, 0.99 * mean + 0.01 * batch_mean, 0.99 * var + 0.01 * batch_var


def plain_dropout(key: jax.Array, rate: float, x: jax.Array) -> jax.Array:
    keep = 1.0 - rate
    return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, 0.0)
