"""The same model, ported to nnx."""

import jax
from flax import nnx


class Classifier(nnx.Module):
    """A convolution, a normalisation, dropout and a linear layer."""

    def __init__(self, classes: int, *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(8, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of shape (batch, classes) of images (batch, height, width, 3)."""
        x = self.norm(self.conv(x))
        x = nnx.relu(x).mean(axis=(1, 2))
        return self.out(self.dropout(x))
