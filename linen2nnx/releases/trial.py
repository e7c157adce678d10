"""Does this flax work with this jax? `python -m linen2nnx.releases.trial` says so.

It runs what most models do, on both sides of flax, up to the first step that raises an
error: `{"error": "nnx train step: TypeError: ...", ...}`, where null means that all of
it works. It runs with any flax since 0.8.5, so that it uses no name that came later.
"""

import ast
import importlib
import inspect
import json
import warnings
from collections.abc import Callable
from importlib.metadata import metadata, requires
from typing import Any


def main() -> None:
    """Print whether every step works, or how the first that does not fails."""
    found: dict[str, Any] = {
        "requires_python": metadata("flax")["Requires-Python"],
        "requires": requires("flax") or [],
        "nnx_names": [],
        "error": None,
    }
    for step, run in STEPS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found["nnx_names"] = run() or found["nnx_names"]
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            found["error"] = f"{step}: {type(error).__name__}: {lines[0]}"
            break
    print(json.dumps(found))


def _import() -> list[str]:
    """The public names that `flax/nnx/__init__.py` imports or defines."""
    importlib.import_module("flax.linen")
    nnx = importlib.import_module("flax.nnx")
    names: set[str] = set()
    for node in ast.parse(inspect.getsource(nnx)).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return sorted(name for name in names if not name.startswith("_"))


def _linen_train_step() -> None:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = nn.Conv(4, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            x = nn.Dropout(0.5, deterministic=not train)(x)
            x = nn.MultiHeadDotProductAttention(num_heads=2)(x.reshape(2, -1, 4))
            return nn.Dense(3)(x.mean(axis=1))

    model, x = Model(), jnp.ones((2, 4, 4, 3))
    variables = model.init(jax.random.key(0), x, train=False)
    params, stats = variables["params"], variables["batch_stats"]
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(params: Any, stats: Any, opt_state: Any) -> Any:
        def loss(params: Any) -> Any:
            return model.apply(
                {"params": params, "batch_stats": stats},
                x,
                train=True,
                rngs={"dropout": jax.random.key(1)},
                mutable=["batch_stats"],
            )[0].sum()

        updates, _ = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates)

    jax.block_until_ready(step(params, stats, optimizer.init(params)))


def _linen_scan() -> None:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: Any, _: Any) -> Any:
            return nn.Dense(3)(x), None

    layers = nn.scan(
        Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
    )()
    x = jnp.ones((2, 3))
    layers.apply(layers.init(jax.random.key(0), x, None), x, None)


def _nnx_model() -> Any:
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.conv = nnx.Conv(3, 4, kernel_size=(3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(
                num_heads=2, in_features=4, decode=False, rngs=rngs
            )
            self.linear = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = self.dropout(nnx.relu(self.norm(self.conv(x))))
            x = self.attention(x.reshape(2, -1, 4))
            return self.linear(x.mean(axis=1))

    return Model(nnx.Rngs(0))


def _nnx_train_step() -> None:
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    model, x = _nnx_model(), jnp.ones((2, 4, 4, 3))
    takes_wrt = "wrt" in inspect.signature(nnx.Optimizer.__init__).parameters
    wrt: dict[str, Any] = {"wrt": nnx.Param} if takes_wrt else {}
    optimizer: Any = nnx.Optimizer(model, optax.adam(1e-3), **wrt)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> Any:
        gradients = nnx.grad(lambda model: model(x).sum())(model)
        if "model" in inspect.signature(optimizer.update).parameters:
            optimizer.update(model, gradients)
        else:
            optimizer.update(gradients)

    step(model, optimizer)
    jax.block_until_ready(nnx.state(model, nnx.Param))


def _nnx_vmap_and_scan() -> None:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    @nnx.vmap
    def create(key: Any) -> Any:
        return nnx.Linear(3, 3, rngs=nnx.Rngs(key))

    layers = create(jax.random.split(jax.random.key(0), 2))
    graphdef, state = nnx.split(layers)

    def apply(x: Any, state: Any) -> Any:
        return nnx.merge(graphdef, state)(x), None

    jax.block_until_ready(jax.lax.scan(apply, jnp.ones((2, 3)), state)[0])


STEPS: dict[str, Callable[[], Any]] = {
    "import": _import,
    "Linen train step": _linen_train_step,
    "Linen scan": _linen_scan,
    "nnx train step": _nnx_train_step,
    "nnx vmap and scan": _nnx_vmap_and_scan,
}

if __name__ == "__main__":
    main()
