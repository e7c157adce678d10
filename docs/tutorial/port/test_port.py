"""The port computes what the Linen model computes."""

import jax
import jax.numpy as jnp
import model_linen
import model_nnx
from flax import nnx

from linen2nnx import parity


def test_port() -> None:
    """From the same random values: outputs, gradients and an optimizer step."""
    module = model_linen.Classifier(3)
    x = jax.random.normal(jax.random.key(0), (5, 4))
    variables, model = parity.random_pair(
        jax.eval_shape(module.init, jax.random.key(0), jnp.ones((5, 4))),
        nnx.eval_shape(lambda: model_nnx.Classifier(4, 3, rngs=nnx.Rngs(0))),
    )
    parity.assert_parity(module, variables, model, x)
