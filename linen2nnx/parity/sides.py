"""What is called on either side, with which arguments; wrong ones are refused."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.errors
import flax.linen as nn
import jax
from flax import nnx

from linen2nnx.leaves import Variables
from linen2nnx.parity import randomness as keys
from linen2nnx.parity.programs import like

ADVICE = {  # what to do about an error of the Linen side
    flax.errors.InvalidRngError: (
        "The Linen side draws random numbers. Set its mode, such as "
        "linen_kwargs={'train': False}, or give randomness='same keys'."
    ),
    flax.errors.ModifyScopeVariableError: (
        "Linen may update the collections that variables hold, params apart; "
        "module.init gives them all. A function as linen_module names them itself, in "
        "apply(..., mutable=...)."
    ),
    flax.errors.CallCompactUnboundModuleError: (
        "A function as linen_module takes (variables, *inputs) and calls "
        "module.apply(variables, *inputs)."
    ),
    flax.errors.CallSetupUnboundModuleError: (
        "A function as linen_module takes (variables, *inputs) and calls "
        "module.apply(variables, *inputs)."
    ),
    flax.errors.ScopeParamNotFoundError: (
        "These variables are not those of this module; module.init gives some that are."
    ),
    flax.errors.ScopeParamShapeError: (
        "These variables are not those of this module on these inputs."
    ),
}


class Arguments:
    """What one side is called with: `jit` traces the arrays and leaves the rest."""

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """The arguments, which are pytrees."""
        found, self._treedef = jax.tree.flatten((tuple(args), dict(kwargs)))
        self.arrays = [leaf for leaf in found if hasattr(leaf, "dtype")]
        self._rest = [None if hasattr(leaf, "dtype") else leaf for leaf in found]

    def filled(self, arrays: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments again, with these arrays in the place of their own."""
        remaining = iter(arrays)
        found = [next(remaining) if leaf is None else leaf for leaf in self._rest]
        return jax.tree.unflatten(self._treedef, found)


def refuse_wrong_sides(
    linen_module: Any, variables: Variables | None, nnx_model: Any
) -> None:
    """Raise an error where the sides are swapped, classes, or without values."""
    for name, given in (("linen_module", linen_module), ("nnx_model", nnx_model)):
        if isinstance(given, type):
            it = given.__name__
            raise TypeError(f"{name} is the class {it}; it takes a model, {it}(...)")
    if isinstance(linen_module, nnx.Module) or isinstance(nnx_model, nn.Module):
        raise TypeError(
            f"linen_module is a {type(linen_module).__name__} and nnx_model a "
            f"{type(nnx_model).__name__}; the order is Linen, variables, nnx"
        )
    if variables is None:
        if not isinstance(linen_module, nn.Module):
            raise TypeError(
                "variables is None, which takes a Linen module that says their shapes; "
                "linen_module is a function"
            )
        return
    if not isinstance(variables, Mapping):
        raise TypeError(
            f"variables is {type(variables).__name__}; it takes a dict by collection, "
            "or None for random values"
        )
    has_params = bool(jax.tree.leaves(nnx.state(nnx_model, nnx.Param)))
    if has_params and not variables:
        raise ValueError(
            "variables is empty; it takes what module.init returns, a checkpoint, or "
            "None for random values"
        )
    names = {nnx.variable_name_from_type(kind) for kind in _COLLECTIONS}
    if has_params and not names & {*variables}:
        raise ValueError(
            f"variables has the keys {', '.join(map(repr, variables))} and no "
            "collection such as 'params'; if these are the params, it takes "
            "{'params': ...}"
        )


_COLLECTIONS = (nnx.Param, nnx.BatchStat, nnx.Cache, nnx.Intermediate)


def refuse_wrong_inputs(side: str, module: Any, arguments: Arguments) -> None:
    """Raise an error where a side does not take these inputs."""
    if not hasattr(module, "__call__"):  # noqa: B004 - a model with other methods only
        raise TypeError(
            f"{side} {type(module).__name__} has no __call__; give "
            "call=lambda model, x: model.method(x)"
        )
    args, kwargs = arguments.filled(arguments.arrays)
    signature = inspect.signature(module.__call__)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = [f"{len(args)} inputs", *(f"{name}=" for name in kwargs)]
        raise TypeError(
            f"{side} {type(module).__name__} takes {signature} and got "
            f"{', '.join(given)}: {error}; its keyword inputs are {side.lower()}_kwargs"
        ) from None


def linen_apply(
    module: nn.Module | Callable[..., Any], arguments: Arguments, randomness: str
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Variables and arrays to the output and the updated variables."""

    def apply(variables: Any, arrays: Any) -> tuple[Any, Any]:
        args, kwargs = arguments.filled(arrays)
        with _keys(randomness), _advice():
            if not isinstance(module, nn.Module):
                return module(variables, *args, **kwargs), variables
            mutable = [name for name in variables if name != "params"]
            output, updated = module.apply(variables, *args, mutable=mutable, **kwargs)
        return output, like(variables, {**variables, **updated})

    return apply


def nnx_call(
    call: Callable[..., Any] | None, arguments: Arguments, randomness: str
) -> Callable[[Any, Any], Any]:
    """Model and arrays to the output; the model is updated."""

    def run(model: Any, arrays: Any) -> Any:
        args, kwargs = arguments.filled(arrays)
        with _keys(randomness):
            if call is not None:
                return call(model, *args, **kwargs)
            return model(*args, **kwargs)

    return run


def _keys(randomness: str) -> contextlib.AbstractContextManager[None]:
    if randomness == "same keys":
        return keys.same_keys(jax.random.key(0))
    return contextlib.nullcontext()


@contextlib.contextmanager
def _advice() -> Iterator[None]:
    """Tell what to do about an error of the Linen side."""
    try:
        yield
    except flax.errors.FlaxError as error:
        if advice := ADVICE.get(type(error)):
            error.add_note(advice)
        raise
