"""What both sides of a comparison are, and what they are called with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from linen2nnx import mapping
from linen2nnx.leaves import Variables
from linen2nnx.modes import MODES, Mode, in_mode
from linen2nnx.parity.randomness import KINDS, Randomness
from linen2nnx.parity.sides import Arguments
from linen2nnx.parity.values import random_pair

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Pair:
    """A Linen module and the nnx model that is to compute the same.

    Variables, model and inputs are made when they are first read, once. Without a
    checkpoint every leaf of both sides is random and none is an initial value, which
    would hide errors.

    Attributes:
        linen: the Linen module.
        create: makes the nnx model, in the mode of train or eval that is to be
            compared, from `rngs=`: its class, or `partial(nnx.Linear, 3, 2)`.
        inputs: that both sides are called with: each a shape, for random numbers, or an
            array or pytree of arrays.
        rename: as for `linen2nnx.mapping.table`.
        randomness: as for `linen2nnx.parity.assert_parity`.
        mode: of nnx, `graph` or `tree`; None takes the one that is set.
        linen_kwargs: keyword inputs of the Linen side, such as `{"train": False}`.
        nnx_kwargs: likewise of the nnx side.
        linen_call: how the Linen side is called, `(module, variables, *inputs) ->
            output`; None applies the module, which may update all its collections but
            `params`.
        nnx_call: how the nnx side is called, `(model, *inputs) -> output`; None calls
            the model.
        checkpoint: the Linen variables that both sides hold; None is random values.
        seed: of random values and inputs.
        dtype: of every floating leaf of both sides and of random inputs; None keeps
            each leaf's own, and float32 inputs.
        input_dtype: of random inputs, if not `dtype`.

    Raises:
        TypeError: if an attribute is of another kind, such as a model as `create`.
        ValueError: if `mode`, `randomness` or a dtype is none of those that there are.

    Example:
        >>> from functools import partial
        >>> from linen2nnx import assert_parity
        >>> dense = Pair(nn.Dense(2), partial(nnx.Linear, 3, 2), [(3,)])
        >>> assert_parity(dense).largest_difference
        0.0
    """

    linen: nn.Module
    create: Callable[..., nnx.Module]
    inputs: Sequence[Shape | ArrayLike | Mapping[str, Any]]
    rename: Mapping[str, str] | None = None
    randomness: Randomness = "deterministic"
    mode: Mode | None = None
    linen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    nnx_kwargs: Mapping[str, Any] = field(default_factory=dict)
    linen_call: Callable[..., Any] | None = None
    nnx_call: Callable[..., Any] | None = None
    checkpoint: Variables | None = None
    seed: int = 0
    dtype: DTypeLike | None = None
    input_dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        """Refuse what is easily taken for something else."""
        if isinstance(self.create, nnx.Module) or not callable(self.create):
            raise TypeError(
                f"create is a {type(self.create).__name__}; it takes a function that "
                "makes the nnx model from rngs=, such as its class"
            )
        takes = "it takes a list, of a shape or an array for each input"
        if not isinstance(self.inputs, list | tuple) or is_shape(self.inputs):
            raise TypeError(f"inputs is {self.inputs!r:.60}; {takes}")
        for index, given in enumerate(self.inputs):
            if isinstance(given, str) or (
                is_shape(given) and min(given, default=1) < 1
            ):
                raise TypeError(f"inputs[{index}] is {given!r:.60}; {takes}")
        fields: dict[str, tuple[Any, str]] = {
            "rename": (Mapping | None, "a dict of Linen to nnx paths"),
            "linen_kwargs": (Mapping, "a dict"),
            "nnx_kwargs": (Mapping, "a dict"),
            "linen_call": (Callable | None, "a function"),
            "nnx_call": (Callable | None, "a function"),
            "checkpoint": (Mapping | None, "a dict of collections"),
            "seed": (int, "a whole number"),
        }
        for name, (kind, words) in fields.items():
            if not isinstance(value := getattr(self, name), kind):
                raise TypeError(f"{name} is {value!r:.60}; it takes {words}")
        for name, choices in {
            "mode": (None, *MODES),
            "randomness": KINDS,
        }.items():
            if (value := getattr(self, name)) not in choices:
                words = ", ".join(map(str, choices))
                raise ValueError(f"{name} is {value!r}; it takes one of {words}")
        dtype = self.input_dtype or self.dtype or jnp.float32
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"random inputs are floating, not {jnp.dtype(dtype)}; give others as "
                "arrays in inputs"
            )

    @cached_property
    def arrays(self) -> tuple[Any, ...]:
        """The inputs, random where a shape was given."""
        rng = np.random.default_rng(self.seed)
        dtype = self.input_dtype or self.dtype or jnp.float32
        inputs: Sequence[Any] = self.inputs
        return tuple(
            jnp.asarray(rng.standard_normal(given), dtype) if is_shape(given) else given
            for given in inputs
        )

    @cached_property
    def abstract_variables(self) -> Variables:
        """Shapes and dtypes of what `module.init` gives, for float32 where random."""
        inputs: Sequence[Any] = self.inputs
        arrays = [
            jax.ShapeDtypeStruct(given, jnp.float32) if is_shape(given) else given
            for given in inputs
        ]
        arguments = Arguments(arrays, self.linen_kwargs)

        def init(arrays: Any) -> Any:
            args, kwargs = arguments.filled(arrays)
            return self.linen.init(jax.random.key(0), *args, **kwargs)

        return jax.eval_shape(init, arguments.arrays)

    @cached_property
    def abstract_model(self) -> nnx.Module:
        """The nnx model without values."""
        with in_mode(self.mode):
            return nnx.eval_shape(lambda: self.model_from(0))

    @cached_property
    def _values(self) -> tuple[Variables, Any, nnx.State]:
        target = self.checkpoint
        if target is None:
            target = self.abstract_variables
        variables, model = random_pair(
            target,
            self.abstract_model,
            seed=self.seed,
            dtype=self.dtype,
            rename=self.rename,
        )
        if self.checkpoint is not None:
            variables = self.checkpoint
            model = mapping.to_nnx(variables, model, rename=self.rename)
        return variables, *nnx.split(model)

    @property
    def variables(self) -> Variables:
        """The Linen variables.

        Raises:
            linen2nnx.mapping.MappingError: if the sides do not correspond.
        """
        with in_mode(self.mode):
            return self._values[0]

    @property
    def model(self) -> nnx.Module:
        """The nnx model that holds the same: a new one each time, to be changed.

        Raises:
            linen2nnx.mapping.MappingError: if the sides do not correspond.
        """
        with in_mode(self.mode):
            _, graphdef, state = self._values
            return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf, state))

    def model_from(self, seed: int) -> nnx.Module:
        """A new model with nnx's own initial values.

        Raises:
            TypeError: if `create` makes something else.
        """
        model = self.create(rngs=nnx.Rngs(seed))
        if not isinstance(model, nnx.Module):
            raise TypeError(
                f"create made a {type(model).__name__}; it takes a function that makes "
                "the nnx model from rngs="
            )
        return model

    def variables_of(self, model: nnx.Module) -> Variables:
        """The Linen variables that hold what a model holds."""
        return mapping.to_linen(model, self.abstract_variables, rename=self.rename)


def is_shape(given: Any) -> bool:
    """Whether an input is given as a shape: a tuple of Python integers.

    Example:
        >>> is_shape((5, 3)), is_shape((np.int32(5),)), is_shape(np.ones(3))
        (True, False, False)
    """
    return isinstance(given, tuple) and all(type(size) is int for size in given)
