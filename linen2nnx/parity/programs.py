"""Gradients, an optimizer step and copies of state, for the program of one side."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.core import FrozenDict, freeze

from linen2nnx.leaves import Variables
from linen2nnx.parity.differences import is_float


def optimizer_step(
    model: nnx.Module, optimizer: optax.GradientTransformation, gradients: Any
) -> None:
    """One step of a new optimizer of the model's Params, in place."""
    stepping = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    if "model" in inspect.signature(stepping.update).parameters:
        stepping.update(model, gradients)
    else:  # before flax 0.11 the optimizer holds the model
        stepping.update(gradients)  # type: ignore[call-arg]


def _floating(tree: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """The floating leaves of `tree`, and what puts others in their place."""
    leaves, treedef = jax.tree.flatten(tree)

    def fill(values: Sequence[Any]) -> Any:
        remaining = iter(values)
        filled = [next(remaining) if is_float(leaf) else leaf for leaf in leaves]
        return jax.tree.unflatten(treedef, filled)

    return [leaf for leaf in leaves if is_float(leaf)], fill


def gradients_of(loss: Callable[[Any], Any], tree: Any) -> Any:
    """The gradient for every floating leaf of `tree`; other leaves as they are."""
    values, fill = _floating(tree)
    return fill(jax.grad(lambda values: loss(fill(values)))(values))


def pull_back(edit: Callable[[Any], Any], start: Any, gradients: Any) -> Any:
    """From the gradients for what `edit` makes of `start` to those for `start`."""
    values, fill = _floating(start)
    _, pull = jax.vjp(lambda values: _floating(edit(fill(values)))[0], values)
    return fill(*pull(_floating(gradients)[0]))


def random_loss(output: Any) -> Any:
    """A random linear function of every floating leaf of an output."""
    rng = np.random.default_rng(0)
    total = jnp.float32(0)
    for leaf in jax.tree.leaves(output):
        if is_float(leaf):
            weights = rng.standard_normal(leaf.shape).astype(np.float32)
            total += jnp.sum(weights * leaf.astype(jnp.float32))
    return total


def snapshot(tree: Any) -> Any:
    """The same arrays in new containers and new Variables."""
    return jax.tree.map(lambda leaf: leaf, tree)


def state_of(model: nnx.Module, kept: Any = ...) -> nnx.State:
    """The state of a model, or the part of it that is kept, in new Variables."""
    return snapshot(nnx.state(model, kept))


def like(variables: Variables, new: dict[str, Any]) -> Variables:
    """`new` as the kind of dict that `variables` is."""
    return freeze(new) if isinstance(variables, FrozenDict) else new
