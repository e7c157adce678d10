"""Load an orbax checkpoint of Linen into an nnx model.

An abstract model gives the target in Linen's layout, so that orbax
checks names and shapes; what it restores is renamed and put into
the model's state. In Linen the variables are the checkpoint; the
attributes `hidden`, `norm` and `output` are `Dense_0`,
`BatchNorm_0` and `Dense_1` there.
"""

import tempfile

# --8<-- [start:imports]
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import Array, Float

# --8<-- [end:imports]
from linen2nnx import arguments


# --8<-- [start:model]
class MLP(nnx.Module):
    def __init__(self, din: int, features: int, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(din, features, rngs=rngs)
        self.norm = nnx.BatchNorm(features, rngs=rngs)
        self.output = nnx.Linear(features, features, rngs=rngs)

    def __call__(
        self, x: Float[Array, "*b din"]
    ) -> Float[Array, "*b n"]:
        x = self.norm(self.hidden(x))
        return self.output(nnx.relu(x))


# --8<-- [end:model]


# --8<-- [start:layout]
LINEN_NAMES = {  # (1)!
    "hidden": "Dense_0",
    "norm": "BatchNorm_0",
    "output": "Dense_1",
}


def linen_layout(model: MLP) -> dict:
    params, stats = nnx.state(model, nnx.Param, nnx.BatchStat)
    variables = {"params": params, "batch_stats": stats}
    return {
        collection: {
            LINEN_NAMES[name]: leaves
            for name, leaves in nnx.to_pure_dict(state).items()
        }
        for collection, state in variables.items()
    }


# --8<-- [end:layout]


# --8<-- [start:load]
def load_checkpoint(path: Path, din: int, features: int) -> MLP:
    model = nnx.eval_shape(
        lambda: MLP(din, features, rngs=nnx.Rngs(0))
    )
    target = linen_layout(model)
    with ocp.StandardCheckpointer() as checkpointer:
        variables = checkpointer.restore(path, target)  # (1)!
    params, stats = variables["params"], variables["batch_stats"]
    values = {
        name: params[linen_name] | stats.get(linen_name, {})
        for name, linen_name in LINEN_NAMES.items()
    }
    graphdef, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, values)
    model = nnx.merge(graphdef, state)
    model.eval()  # (2)!
    return model


# --8<-- [end:load]


# --8<-- [start:save]
def save_checkpoint(path: Path, model: MLP) -> None:
    with ocp.StandardCheckpointer() as checkpointer:  # (1)!
        checkpointer.save(path, linen_layout(model))


# --8<-- [end:save]


# --8<-- [start:params_only]
def load_params(path: Path, din: int, features: int) -> MLP:
    loaded = load_checkpoint(path, din, features)
    fresh = MLP(din, features, rngs=nnx.Rngs(0))
    nnx.update(fresh, nnx.state(loaded, nnx.Param))
    return fresh  # (1)!


# --8<-- [end:params_only]


# --8<-- [start:shapes]
def checkpoint_shapes(path: Path) -> dict:
    with ocp.StandardCheckpointer() as checkpointer:
        variables = checkpointer.restore(path)  # (1)!
    return jax.tree.map(jnp.shape, variables)


# --8<-- [end:shapes]


def orbax_linen_to_nnx(
    seed, x, features
) -> Float[Array, "features"]:
    """Save a model in Linen's layout, load it and apply it.

    Args:
        seed: whole number; seeds the model that is saved.
        x: input, numeric, shape (din,).
        features: whole number from 1; width of every layer.

    Returns:
        The loaded model's output, shape (features,).

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """
    seed = arguments.seed("seed", seed)
    x = arguments.vector("x", x)
    features = arguments.size("features", features)
    model = MLP(x.shape[0], features, rngs=nnx.Rngs(int(seed)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        save_checkpoint(path, model)
        model = load_checkpoint(path, x.shape[0], features)
    return model(x)


if __name__ == "__main__":
    print(orbax_linen_to_nnx(0, jnp.arange(3.0), 2))
