"""Load an orbax checkpoint of Linen into an nnx model.

An abstract model gives the target in Linen's layout, so that orbax
checks names and shapes; what it restores is renamed and put into
the model's state. In Linen the variables are the checkpoint; the
attributes `hidden`, `norm` and `output` are `Dense_0`,
`BatchNorm_0` and `Dense_1` there.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx


# region: model - The model
class MLP(nnx.Module):
    def __init__(self, din: int, features: int, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(din, features, rngs=rngs)
        self.norm = nnx.BatchNorm(features, rngs=rngs)
        self.output = nnx.Linear(features, features, rngs=rngs)

    def __call__(self, x):  # (b, n) -> (b, m)
        x = self.norm(self.hidden(x))
        return self.output(nnx.relu(x))


# region: layout - The layout
# nnx: Linen numbers the layers of a class in the order in which
# they are built.
LINEN_NAMES = {
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


# region: load - Load
def load_checkpoint(path: Path, din: int, features: int) -> MLP:
    model = nnx.eval_shape(
        lambda: MLP(din, features, rngs=nnx.Rngs(0))
    )
    target = linen_layout(model)
    with ocp.StandardCheckpointer() as checkpointer:
        # nnx: The target gives names, shapes and dtypes: those of
        # the nnx model, in Linen's layout.
        variables = checkpointer.restore(path, target)
    params, stats = variables["params"], variables["batch_stats"]
    values = {
        name: params[linen_name] | stats.get(linen_name, {})
        for name, linen_name in LINEN_NAMES.items()
    }
    graphdef, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, values)
    model = nnx.merge(graphdef, state)
    # nnx: A new model is in train mode.
    model.eval()
    return model


# region: save
def save_checkpoint(path: Path, model: MLP) -> None:
    # nnx: The save runs in the background. Leaving the `with` waits
    # for it.
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, linen_layout(model))


# region: params_only - Variation: the params only, new statistics
def load_params(path: Path, din: int, features: int) -> MLP:
    loaded = load_checkpoint(path, din, features)
    fresh = MLP(din, features, rngs=nnx.Rngs(0))
    nnx.update(fresh, nnx.state(loaded, nnx.Param))
    # nnx: In train mode, to collect statistics before it is
    # evaluated.
    return fresh


# region: shapes
def checkpoint_shapes(path: Path) -> dict:
    with ocp.StandardCheckpointer() as checkpointer:
        # nnx: Nothing is compared with a model here: no name, no
        # shape.
        variables = checkpointer.restore(path)
    return jax.tree.map(jnp.shape, variables)


# region: end


if __name__ == "__main__":
    x = jnp.eye(3)
    model = MLP(din=3, features=2, rngs=nnx.Rngs(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        save_checkpoint(path, model)
        loaded = load_checkpoint(path, din=3, features=2)
    print(loaded(x))
