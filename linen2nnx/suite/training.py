"""How a problem trains on both sides, and that all that training keeps is the same."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from linen2nnx import mapping
from linen2nnx.modes import Mode, current_mode
from linen2nnx.parity import randomness
from linen2nnx.parity.differences import Tolerance
from linen2nnx.parity.equal import assert_equal
from linen2nnx.parity.pair import Pair

SEED = 5  # of the keys that both sides are given
Batch = tuple[jax.Array, jax.Array]


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """How both sides train.

    Attributes:
        state: makes Linen's `TrainState` from a pair.
        optimizer: makes the `nnx.Optimizer` of a model.
        linen: trains, `(state, batches) -> (state, losses)`.
        nnx: trains in place, `(model, optimizer, batches) -> losses`.
        idioms: other ways to train in nnx, of the form of `nnx`, each with the modes it
            works in; by name.
        steps: how many batches.
        tolerance: of losses and state; None is exact.
    """

    state: Callable[[Pair], Any]
    optimizer: Callable[[Any], Any]
    linen: Callable[[Any, Sequence[Batch]], tuple[Any, jax.Array]]
    nnx: Callable[[Any, Any, Sequence[Batch]], jax.Array]
    idioms: Mapping[str, tuple[Callable[..., Any], Sequence[Mode]]] = field(
        default_factory=dict
    )
    steps: int = 4
    tolerance: Tolerance | None = None

    def batches(self, pair: Pair) -> list[Batch]:
        """Random inputs like that of the pair, and targets like the output."""
        (x,) = pair.arrays
        output, _ = jax.eval_shape(
            lambda x: pair.linen.init_with_output(
                jax.random.key(0), x, **pair.linen_kwargs
            ),
            x,
        )
        rng = np.random.default_rng(pair.seed)
        return [
            (
                jnp.asarray(rng.standard_normal(x.shape), x.dtype),
                jnp.asarray(rng.standard_normal(output.shape), output.dtype),
            )
            for _ in range(self.steps)
        ]

    def trained(self, pair: Pair) -> tuple[Any, Any]:
        """A new model with the values of the pair, and its optimizer."""
        model = pair.model
        return model, self.optimizer(model)

    def assert_same(self, pair: Pair, *, jit: bool = True) -> None:
        """Losses, params, statistics and optimizer state are the same after all steps.

        Args:
            pair: its variables and model are where both sides start.
            jit: False runs both op by op.

        Raises:
            linen2nnx.parity.ParityError: if something differs.
            AssertionError: if the steps show nothing: a loss that stays the same.
        """
        __tracebackhide__ = True
        batches, trained = self.batches(pair), self.trained(pair)
        start = self.state(pair)  # not below: what is made there would draw keys
        with contextlib.nullcontext() if jit else jax.disable_jit():
            with _keys(pair):
                state, losses = self.linen(start, batches)
            with _keys(pair):
                ours = self.nnx(*trained, batches)
        assert_equal(losses, ours, check="loss of a step", tolerance=self.tolerance)
        assert_same_state(state, *trained, self.tolerance)
        assert np.isfinite(losses).all()
        assert len(set(losses.tolist())) == len(batches)

    def assert_idiom(self, pair: Pair, name: str) -> None:
        """One idiom of nnx gives what `nnx` gives, random keys and counts too.

        Raises:
            linen2nnx.parity.ParityError: if it does not.
        """
        __tracebackhide__ = True
        batches = self.batches(pair)
        expected, other = self.trained(pair), self.trained(pair)
        train, _ = self.idioms[name]
        losses = self.nnx(*expected, batches)
        assert_equal(losses, jnp.stack([*train(*other, batches)]))
        states = [nnx.to_pure_dict(nnx.state(both)) for both in (expected, other)]
        assert_equal(*states, check="state after a step")


def linen_loop(step: Callable[..., Any]) -> Callable[..., Any]:
    """Training by a step `(state, x, y) -> (state, loss)`."""

    def train(state: Any, batches: Sequence[Batch]) -> tuple[Any, jax.Array]:
        losses = []
        for x, y in batches:
            state, loss = step(state, x, y)
            losses.append(loss)
        return state, jnp.stack(losses)

    return train


def nnx_loop(step: Callable[..., Any]) -> Callable[..., Any]:
    """Training by a step under `nnx.jit`, `(model, optimizer, x, y) -> loss`.

    `nnx.jit` takes the mode in which it decorates, not that of the call, so that the
    step is decorated once in each mode.
    """

    @functools.cache
    def decorated(mode: Mode) -> Callable[..., jax.Array]:
        return nnx.jit(step.__wrapped__)  # type: ignore[attr-defined]

    def train(model: Any, optimizer: Any, batches: Sequence[Batch]) -> jax.Array:
        in_mode = decorated(current_mode())
        return jnp.stack([in_mode(model, optimizer, x, y) for x, y in batches])

    return train


def assert_same_state(
    state: Any,
    model: nnx.Module,
    optimizer: Any,
    tolerance: Tolerance | None = None,
) -> None:
    """Params, statistics, optimizer state and step of the two sides are the same.

    Args:
        state: a `TrainState`, with `batch_stats` if the model has them.
        model: with the same names.
        optimizer: of the model.
        tolerance: of every leaf; None is exact.

    Raises:
        linen2nnx.parity.ParityError: naming every leaf that differs.
    """
    __tracebackhide__ = True
    variables = {"params": state.params}
    if hasattr(state, "batch_stats"):
        variables["batch_stats"] = state.batch_stats
    ours = mapping.to_linen(model, variables)
    assert_equal(variables, ours, check="state after a step", tolerance=tolerance)
    assert_equal(
        state.opt_state,
        linen_opt_state(optimizer, model, state.params),
        check="optimizer state after a step",
        tolerance=tolerance,
    )
    assert int(state.step) == int(optimizer.step[...])


def linen_opt_state(optimizer: Any, model: nnx.Module, params: Any) -> Any:
    """The optimizer's state as `TrainState` would hold it, with the names of `params`.

    What is a `State` there, such as the moments of Adam, has the model's structure.
    """
    treedef = jax.tree.structure(nnx.state(model, nnx.Param))
    nodes = (nnx.State, nnx.Variable)

    def convert(node: Any) -> Any:
        if isinstance(node, nnx.Variable):
            return node[...]
        as_params = jax.tree.unflatten(treedef, jax.tree.leaves(node))
        return mapping.to_linen(as_params, {"params": params})["params"]

    return jax.tree.map(
        convert, optimizer.opt_state, is_leaf=lambda node: isinstance(node, nodes)
    )


def _keys(pair: Pair) -> contextlib.AbstractContextManager[None]:
    if pair.randomness == "same keys":
        return randomness.same_keys(jax.random.key(SEED))
    return contextlib.nullcontext()
