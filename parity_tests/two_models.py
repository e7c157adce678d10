"""Two models as one, for an edit of one that reads the other."""

import functools

import flax.linen as nn
from flax import nnx

from linen2nnx import Pair
from linen2nnx.suite.problem import Edit


class LinenModels(nn.Module):
    source: nn.Module
    target: nn.Module

    def __call__(self, x):
        if self.is_initializing():
            self.source(x)
        return self.target(x)


class NNXModels(nnx.Module):
    def __init__(self, source, target, *, rngs):
        self.source, self.target = source(rngs=rngs), target(rngs=rngs)

    def __call__(self, x):
        return self.target(x)


def two_models(source, target):
    """A pair of both, compared in every leaf, which applies the target."""
    create = functools.partial(NNXModels, source.create, target.create)
    return Pair(LinenModels(source.linen, target.linen), create, target.inputs)


def of_linen(both, name):
    """The variables of one of the two."""
    return {"params": both["params"][name]}


def edit_target(linen, nnx_side, changes):
    """An edit of the target, from both; `changes` are paths below its `params`."""

    @functools.wraps(linen)
    def edit_linen(both):
        edited = linen(of_linen(both, "source"), of_linen(both, "target"))
        return {"params": {**both["params"], "target": edited["params"]}}

    @functools.wraps(nnx_side)
    def edit_nnx(both):
        nnx_side(both.source, both.target)

    return Edit(edit_linen, edit_nnx, changes=[f"params/target/{p}" for p in changes])
