"""The same model, ported to nnx."""

import jax
from flax import nnx


class Classifier(nnx.Module):
    """Two layers with a normalisation between them."""

    def __init__(self, din: int, classes: int, *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.hidden = nnx.Linear(din, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.out = nnx.Linear(8, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of shape (batch, classes)."""
        return self.out(nnx.relu(self.norm(self.hidden(x))))
