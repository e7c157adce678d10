"""The entry function that a problem is stated with: what it computes and refuses."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from linen2nnx.leaves import Variables
from linen2nnx.parity.pair import Pair

DIN = 3  # of the inputs in the tests of arguments
NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """The entry function of both twins, `(seed, x, *arguments)` of a vector x.

    On the Linen side it takes its starting variables as keywords.

    Attributes:
        name: of the function.
        arguments: a good value of each argument besides `seed` and `x`, by name; those
            that are integers say the size of the model.
        sizes: of the calls: the size of x, and those arguments.
        start: makes what the Linen side starts from, by keyword, from the seed, the
            size of x and the integers.
        limit: what it computes, of arrays without a framework: takes what `start` made,
            x, and the arguments that are no integers.
    """

    name: str
    arguments: Mapping[str, Any]
    sizes: tuple[tuple[int, ...], ...]
    start: Callable[..., dict[str, Variables]]
    limit: Callable[..., Any]

    @property
    def of_size(self) -> list[str]:
        """The arguments that are integers."""
        return [name for name, good in self.arguments.items() if isinstance(good, int)]

    def good(self) -> dict[str, Any]:
        """A good call."""
        return {"seed": 0, "x": np.arange(1.0, DIN + 1), **self.arguments}

    def call(self, rng: np.random.Generator) -> tuple[dict[str, Any], Any, Any]:
        """A random call: its arguments, Linen's starting variables, and the output."""
        din, *sizes = self.sizes[rng.integers(len(self.sizes))]
        given = {
            name: rng.standard_normal() if isinstance(good, float) else good
            for name, good in self.arguments.items()
        }
        given |= dict(zip(self.of_size, sizes))
        given = {name: in_any_form(rng, value) for name, value in given.items()}
        seed = int(rng.integers(0, 2**31))
        x = rng.standard_normal(din) * 10.0 ** rng.integers(-3, 4)
        x = x.astype(rng.choice([np.float32, np.float64, np.int32]))
        start = self.start(seed, din, *sizes)
        rest = [float(v) for name, v in given.items() if name not in self.of_size]
        expected = self.limit(*start.values(), jnp.asarray(x, jnp.float32), *rest)
        return {"seed": in_any_form(rng, seed), "x": x, **given}, start, expected

    def linen_start(self, module: Any) -> dict[str, Any]:
        """The names of the starting variables that Linen's function takes."""
        parameters = inspect.signature(getattr(module, self.name)).parameters
        return {n: None for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def variables_of_seed(pair: Callable[..., Pair]) -> Callable[..., dict[str, Variables]]:
    """`Entry.start` of a problem with one model: that of nnx's seed, as `variables`."""

    def start(seed: int, din: int, *sizes: int) -> dict[str, Variables]:
        made = pair(din, *sizes)
        return {"variables": made.variables_of(made.model_from(seed))}

    return start


_NO_NUMBER: list[Any] = [
    *(True, np.True_, "2", None, [2], (2,), {}, 2j, np.ones(1), jnp.ones(2), b"2")
]
_NO_COUNT = [*_NO_NUMBER, 2.5, NAN, INF, -INF, np.float32(NAN), -1, -1.0, np.int32(-7)]
_NO_SEED = [*_NO_NUMBER, 2.5, NAN, INF, -INF, 2**32, -(2**31) - 1, 1e30]
_NO_SIZE = [*_NO_COUNT, 0, 0.0, np.float64(0), 2**31]
_NOT_FINITE = [*_NO_NUMBER, NAN, INF, -INF, np.float32(NAN)]
_NO_VECTOR: list[Any] = [
    *("1 2 3", None, 3.0, True, {}, {1.0, 2.0}, []),
    np.ones((0,)),
    np.ones((1, 3)),
    jnp.ones((3, 1)),
    np.ones((1, 1, 1)),
    np.array([True, False]),
    np.array([1j, 2j]),
    np.array(["a", "b"]),
    np.array([1, "a"], dtype=object),
    np.array(["2026-11-20"], dtype="datetime64[D]"),
    [[1.0, 2.0], [3.0]],
    [1.0, None],
]


def bad(name: str, good: Any) -> list[Any]:
    """What an argument of that name, of which `good` is a good value, refuses."""
    if name == "seed":
        return _NO_SEED
    if name == "num_extra_layers":  # the one that may be 0
        return _NO_COUNT
    if isinstance(good, np.ndarray):
        return _NO_VECTOR
    return _NO_SIZE if isinstance(good, int) else _NOT_FINITE


def odd(name: str, good: Any) -> list[Any]:
    """Values that are the same as the good one, in other forms."""
    if isinstance(good, np.ndarray):
        forms = [good.astype(t) for t in (int, np.uint8, np.float32)]
        others = [jnp.asarray(good), jnp.asarray(good, int), good.tolist()]
        return [*forms, *others, tuple(good)]
    if isinstance(good, int):
        return [float(good), np.uint8(good), np.float16(good), jnp.float32(good)]
    return [np.float32(good), np.float64(good), jnp.bfloat16(good)]


def in_any_form(rng: np.random.Generator, number: Any) -> Any:
    """The same number as Python's, numpy's or JAX's."""
    if isinstance(number, int):
        forms: list[Any] = [int, float, np.int64, np.float64, np.asarray]
    else:
        number = float(np.float32(number))  # so that every form holds the same number
        forms = [float, np.float32, np.float64, jnp.float32]
    return forms[rng.integers(len(forms))](number)


def wrong_variables(right: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """What is wrong, such variables, and the leaf that the message is to name."""
    flat = traverse_util.flatten_dict(jax.tree.map(np.asarray, dict(right)))
    path = max(flat, key=lambda path: flat[path].ndim)  # a kernel
    leaf, where = flat[path], "".join(f"[{name!r}]" for name in path)

    def with_leaf(at: Any, value: Any) -> Any:
        return traverse_util.unflatten_dict({**flat, at: value})

    yield "no mapping", [right], ""
    yield "text", "params", ""
    yield "number", 3.0, ""
    yield "empty", {}, where
    yield "extra leaf", with_leaf((*path[:-1], "extra"), np.ones(2)), "['extra']"
    yield "extra collection", with_leaf(("other", "mean"), np.ones(2)), "['other']"
    others = {at: value for at, value in flat.items() if at != path}
    yield "no kernel", traverse_util.unflatten_dict(others), where
    renamed = {**others, (*path[:-1], "weight"): leaf}
    yield "other name", traverse_util.unflatten_dict(renamed), "['weight']"
    yield "transposed", with_leaf(path, leaf.T), where
    yield "integers", with_leaf(path, leaf.astype(int)), where
    yield "bools", with_leaf(path, leaf.astype(bool)), where
    yield "scalar", with_leaf(path, 1.0), where


def refused(call: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """The message of a TypeError or ValueError of a call, or what comes instead."""
    try:
        call(**arguments)
    except (TypeError, ValueError) as error:
        return str(error)
    except Exception as error:  # so that the values after it are tried as well
        return repr(error)
    return "no error"
