"""Load an orbax checkpoint of Linen into an nnx model.

The variables are the checkpoint: saved as they are, restored into
the shapes that `init` would give. In nnx they are renamed to the
model's attributes: `Dense_0` is `hidden`, `BatchNorm_0` is `norm`
and `Dense_1` is `output`.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp


# region: model
class MLP(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, train: bool = False):  # (b, n) -> (b, m)
        # Linen: Without a name, this layer is `Dense_0` in the
        # checkpoint.
        x = nn.Dense(self.features)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(self.features)(nn.relu(x))


# region: layout
def linen_layout(din: int, features: int) -> dict:
    model = MLP(features)
    return jax.eval_shape(
        model.init, jax.random.key(0), jnp.ones(din)
    )


# region: load
def load_checkpoint(path: Path, din: int, features: int) -> dict:
    target = linen_layout(din, features)
    with ocp.StandardCheckpointer() as checkpointer:
        # Linen: The target gives names, shapes and dtypes. What is
        # restored are the variables.
        return checkpointer.restore(path, target)


# region: save
def save_checkpoint(path: Path, variables: Mapping) -> None:
    # Linen: The save runs in the background. Leaving the `with`
    # waits for it.
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, variables)


# region: params_only
def load_params(path: Path, din: int, features: int) -> dict:
    loaded = load_checkpoint(path, din, features)
    fresh = MLP(features).init(jax.random.key(0), jnp.ones(din))
    return {**fresh, "params": loaded["params"]}


# region: shapes
def checkpoint_shapes(path: Path) -> dict:
    with ocp.StandardCheckpointer() as checkpointer:
        # Linen: Nothing is compared with a model here: no name, no
        # shape.
        variables = checkpointer.restore(path)
    return jax.tree.map(jnp.shape, variables)


# region: end


if __name__ == "__main__":
    x, model = jnp.eye(3), MLP(features=2)
    variables = model.init(jax.random.key(0), x)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        save_checkpoint(path, variables)
        loaded = load_checkpoint(path, din=3, features=2)
    print(model.apply(loaded, x))
