"""What one flax release does, stated as JSON: `python -m linen2nnx.releases.probe`.

It runs in an environment of `linen2nnx check 0.12.6 0.12.8`, with any flax. What a fact
raises is its value, so that one release that differs leaves the others standing.
"""

import enum
import importlib
import inspect
import json
import warnings
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Print the facts, or why flax does not import."""
    try:
        importlib.import_module("flax.linen")
        nnx = importlib.import_module("flax.nnx")
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        print(json.dumps({"error": f"{type(error).__name__}: {lines[0]}"}))
        return
    from linen2nnx.environment import environment

    print(
        json.dumps(
            {
                "environment": environment(),
                "modes": ["graph", "tree"]
                if hasattr(nnx, "set_graph_mode")
                else ["graph"],
                "behaviour": {name: _try(fact) for name, fact in BEHAVIOUR.items()},
                "numbers": {name: _try(fact) for name, fact in NUMBERS.items()},
                "api": api("flax.linen") | api("flax.nnx"),
            }
        )
    )


def api(module_name: str) -> dict[str, list[str]]:
    """Public names of a module and its classes' methods, with their parameters."""
    module = importlib.import_module(module_name)
    found: dict[str, list[str]] = {}
    for name, value in inspect.getmembers(module):
        if name.startswith("_") or inspect.ismodule(value):
            continue
        path = f"{module_name.removeprefix('flax.')}.{name}"
        found[path] = _parameters(value)
        methods = vars(value).items() if inspect.isclass(value) else ()
        for method_name, method in methods:
            if inspect.isfunction(method) and not method_name.startswith("_"):
                found[f"{path}.{method_name}"] = _parameters(method)
    return found


def _parameters(value: Any) -> list[str]:
    """`["features", "use_bias=True"]`, without self; none for what is not called."""
    try:
        is_class = inspect.isclass(value)
        signature = inspect.signature(value.__init__ if is_class else value)
    except (TypeError, ValueError):
        return []
    return [_parameter(p) for p in signature.parameters.values() if p.name != "self"]


def _parameter(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return parameter.name
    default = parameter.default
    if default is None or isinstance(default, bool | int | float | str | enum.Enum):
        return f"{parameter.name}={default!r}"
    named = getattr(default, "__qualname__", type(default).__name__)
    return f"{parameter.name}={named}"


def _try(fact: Callable[[], Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fact()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"


def _param() -> Any:
    import jax.numpy as jnp
    from flax import nnx

    return nnx.Param(jnp.ones(2))


def _plain_list() -> str:
    from flax import nnx

    class PlainList(nnx.Module):
        def __init__(self) -> None:
            self.layers = [nnx.Linear(2, 2, rngs=nnx.Rngs(0))]

    PlainList()
    return "accepted"


def _value_warns() -> str:
    param = _param()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _ = param.value
    return caught[0].category.__name__ if caught else "no warning"


def _has(name: str) -> Callable[[], str]:
    def fact() -> str:
        from flax import nnx

        return "there" if hasattr(nnx.Param, name) else "not there"

    return fact


def _tree_mode() -> str:
    from flax import nnx

    return "there" if hasattr(nnx, "set_graph_mode") else "not there"


def _rng_paths() -> str:
    from flax import nnx

    model = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=0))
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.RngState))]
    return ", ".join("/".join(map(str, path)) for path in paths)


def _optimizer() -> str:
    from flax import nnx

    return ", ".join(_parameters(nnx.Optimizer))


def _optimizer_update() -> str:
    from flax import nnx

    return ", ".join(_parameters(nnx.Optimizer.update))


def _floats(array: Any) -> list[float]:
    import numpy as np

    return [float(value) for value in np.ravel(np.asarray(array))]


def _nnx_initial() -> list[float]:
    from flax import nnx

    layer: Any = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    return _floats(layer.kernel[...]) + _floats(layer.bias[...])


def _linen_initial() -> list[float]:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    params = nn.Dense(4).init(jax.random.key(0), jnp.ones(3))["params"]
    return _floats(params["kernel"]) + _floats(params["bias"])


def _nnx_mask() -> list[float]:
    import jax.numpy as jnp
    from flax import nnx

    return _floats(nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=0))(jnp.ones(32)))


def _linen_mask() -> list[float]:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    layer = nn.Dropout(0.5, deterministic=False)
    return _floats(layer.apply({}, jnp.ones(32), rngs={"dropout": jax.random.key(0)}))


def _fixed() -> tuple[Any, Any, Any]:
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)
    x, kernel, bias = (rng.standard_normal(shape) for shape in (3, (3, 4), 4))
    return (
        jnp.asarray(x, "float32"),
        jnp.asarray(kernel, "float32"),
        jnp.asarray(bias, "float32"),
    )


def _nnx_output() -> list[float]:
    from flax import nnx

    x, kernel, bias = _fixed()
    layer = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    layer.kernel, layer.bias = nnx.Param(kernel), nnx.Param(bias)
    return _floats(layer(x))


def _linen_output() -> list[float]:
    import flax.linen as nn

    x, kernel, bias = _fixed()
    return _floats(nn.Dense(4).apply({"params": {"kernel": kernel, "bias": bias}}, x))


BEHAVIOUR: dict[str, Callable[[], str]] = {
    "tree mode": _tree_mode,
    "a plain list of Modules as an attribute": _plain_list,
    "reading Variable.value": _value_warns,
    "Variable.get_value": _has("get_value"),
    "Variable.set_value": _has("set_value"),
    "paths of the RNG state of nnx.Dropout": _rng_paths,
    "parameters of nnx.Optimizer": _optimizer,
    "parameters of nnx.Optimizer.update": _optimizer_update,
}

NUMBERS: dict[str, Callable[[], list[float]]] = {
    "initial weights of nnx.Linear for the same seed": _nnx_initial,
    "initial weights of nn.Dense for the same seed": _linen_initial,
    "dropout mask of nnx.Dropout for the same seed": _nnx_mask,
    "dropout mask of nn.Dropout for the same seed": _linen_mask,
    "output of nnx.Linear for the same weights": _nnx_output,
    "output of nn.Dense for the same weights": _linen_output,
}

if __name__ == "__main__":
    main()
