"""What it costs to call a model that was loaded from a checkpoint of Linen.

Reading the checkpoint is not timed: its threads and the disk give other times in each
run. It happens once, before the first call.
"""

import contextlib
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from linen2nnx.cost.arms import (  # noqa: F401, pytest finds the test in here
    WIDTH,
    pytest_generate_tests,
    random_variables,
    strict,
    test_overhead,
    twins,
)
from linen2nnx.cost.forward import Forward, forward_benchmark

PROBLEM = "checkpoints/orbax_linen_to_nnx"

linen, nnx_side = twins(PROBLEM)


class Loaded(Forward):
    """Both sides load what Linen wrote: arrays that are committed to the device."""

    def models(self):
        with checkpoint(*self.variables) as path:
            return (nnx_side.load_checkpoint(path, WIDTH, WIDTH),)


@contextlib.contextmanager
def checkpoint(variables):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        linen.save_checkpoint(path, variables)
        yield path


def pair(_):
    module = linen.MLP(WIDTH)
    variables = random_variables(module, seed=0)
    variables["batch_stats"] = jax.tree.map(
        lambda leaf: 1 + jnp.abs(leaf), variables["batch_stats"]
    )
    with checkpoint(variables) as path:
        variables = linen.load_checkpoint(path, WIDTH, WIDTH)

    def create():
        return (nnx_side.MLP(WIDTH, WIDTH, rngs=nnx.Rngs(0)),)

    return Loaded(
        variables=(variables,),
        create=create,
        linen=module.apply,
        nnx=lambda model, x: model(x),
        plain=plain_apply,
        weights=(variables,),
    )


def plain_apply(variables, x):
    params = variables["params"]
    norm = params["BatchNorm_0"]
    stats = variables["batch_stats"]["BatchNorm_0"]
    x = dense(params["Dense_0"], x)
    scale = jax.lax.rsqrt(stats["var"] + 1e-5) * norm["scale"]
    x = (x - stats["mean"]) * scale + norm["bias"]
    return dense(params["Dense_1"], jax.nn.relu(x))


def dense(layer, x):
    return jnp.dot(x, layer["kernel"]) + layer["bias"]


BENCHMARK = forward_benchmark(PROBLEM, pair)
