"""The same train steps on both sides, compared leaf by leaf after each."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from linen2nnx import mapping, parity

Batch = tuple[jax.Array, jax.Array]


def random_batches(
    rows: int, din: int, features: int, seed: int, dtype: Any = jnp.float32
) -> Iterator[Batch]:
    """Random inputs (rows, din) and targets (rows, features), without an end."""
    rng = np.random.default_rng(seed)
    while True:
        x, y = rng.standard_normal((rows, din)), rng.standard_normal((rows, features))
        yield jnp.asarray(x, dtype), jnp.asarray(y, dtype)


def batch_shapes(module: nn.Module, din: int) -> Mapping[str, Any]:
    """Shapes and dtypes of a module's variables for a batch of shape (2, din)."""
    return jax.eval_shape(module.init, jax.random.key(0), jnp.ones((2, din)))


def random_pair(
    module: nn.Module,
    create_model: Callable[[], nnx.Module],
    din: int,
    seed: int,
    dtype: Any = jnp.float32,
) -> tuple[Mapping[str, Any], nnx.Module]:
    """Variables and model, random and the same in every leaf."""
    target = nnx.eval_shape(create_model)
    shapes = batch_shapes(module, din)
    return parity.random_pair(shapes, target, seed=seed, dtype=dtype)


def linen_opt_state(optimizer: nnx.Optimizer, model: nnx.Module, params: Any) -> Any:
    """The optimizer's state as `TrainState` would hold it, with the names of `params`.

    What is a `State` there, such as the moments of Adam, has the model's structure.
    """
    treedef = jax.tree.structure(nnx.state(model, nnx.Param))

    def convert(node: Any) -> Any:
        if isinstance(node, nnx.Variable):
            return node[...]
        as_params = jax.tree.unflatten(treedef, jax.tree.leaves(node))
        return mapping.to_linen(as_params, {"params": params})["params"]

    return jax.tree.map(
        convert, optimizer.opt_state, is_leaf=lambda n: isinstance(n, _NODES)
    )


_NODES = (nnx.State, nnx.Variable)


def assert_same_training(
    linen: Any,
    nnx_side: Any,
    state: Any,
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    batches: Iterator[Batch],
    *,
    steps: int = 4,
    jit: bool = True,
    tolerance: parity.Tolerance | None = None,
) -> tuple[Any, list[float]]:
    """Run both `train_step`s on the same batches; all they keep must be the same.

    Args:
        linen: the twin, with `train_step(state, x, y) -> (state, loss)`.
        nnx_side: the twin, with `train_step(model, optimizer, x, y) -> loss`.
        state: a `TrainState`, with `batch_stats` if the model has them.
        model: holds the same values.
        optimizer: of the model.
        batches: as from `random_batches`.
        steps: how many; each is compared.
        jit: False runs both op by op.
        tolerance: of everything; None is exact.

    Returns:
        The last `TrainState`, and the losses.
    """
    losses = []
    with contextlib.nullcontext() if jit else jax.disable_jit():
        for _ in range(steps):
            x, y = next(batches)
            before = state.params
            state, loss = linen.train_step(state, x, y)
            nnx_loss = nnx_side.train_step(model, optimizer, x, y)
            parity.assert_equal(
                loss, nnx_loss, check="loss of a step", tolerance=tolerance
            )
            assert_same_state(state, model, optimizer, tolerance)
            losses.append(float(loss))
    same = jax.tree.map(np.array_equal, before, state.params)
    assert not all(jax.tree.leaves(same))  # else the steps show nothing
    assert np.isfinite(losses).all()
    return state, losses


def assert_same_state(
    state: Any,
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    tolerance: parity.Tolerance | None = None,
) -> None:
    """Params, statistics, optimizer state and step of the two sides are the same."""
    variables = {"params": state.params}
    if hasattr(state, "batch_stats"):
        variables["batch_stats"] = state.batch_stats
    ours = mapping.to_linen(model, variables)
    parity.assert_equal(
        variables, ours, check="state after a step", tolerance=tolerance
    )
    parity.assert_equal(
        state.opt_state,
        linen_opt_state(optimizer, model, state.params),
        check="optimizer state after a step",
        tolerance=tolerance,
    )
    assert int(state.step) == int(optimizer.step[...])


@functools.cache
def train_step_of_mode(mode: str, nnx_side: Any) -> Callable[..., jax.Array]:
    """A twin's `train_step`, jitted in that mode.

    `nnx.jit` takes the mode in which it decorates, not that of the call: without this,
    the twin's own would be in graph mode in every test.

    Args:
        mode: `graph` or `tree`, the one that is set.
        nnx_side: the twin.
    """
    assert mode in ("graph", "tree")
    return nnx.jit(nnx_side.train_step.__wrapped__)
