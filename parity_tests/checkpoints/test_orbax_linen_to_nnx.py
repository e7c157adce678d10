"""Parity, cost and pitfalls of `checkpoints/orbax_linen_to_nnx`."""

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from linen2nnx import Pair, parity
from linen2nnx.cost.forward import Forward
from linen2nnx.cost.step import plain_dense
from linen2nnx.suite.problem import Mistake, Problem
from linen_impl.checkpoints import orbax_linen_to_nnx as linen
from nnx_impl.checkpoints import orbax_linen_to_nnx as nnx_side

EXPECTED = [
    {
        "flax": "<0.12.0",
        "modes": ["graph"],
        "verdict": "not there yet",
        "cause": "a pitfall is shown with nnx.List, since 0.12.0",
    },
]

RENAME = {"Dense_0": "hidden", "BatchNorm_0": "norm", "Dense_1": "output"}


def mlp(din=3, features=2, batch=(5,), train=False):
    def create(rngs):
        model = nnx_side.MLP(din, features, rngs=rngs)
        if not train:
            model.eval()
        return model

    return Pair(
        linen.MLP(features),
        create,
        [(*batch, din)],
        rename=RENAME,
        linen_kwargs={"train": train},
    )


def restored(*size):
    """Both sides hold what Linen wrote: arrays that are committed to the device.

    Reading it is not timed. Its threads and the disk give other times in each run, and
    it happens once, before the first call.
    """
    pair = mlp(*size)
    with saved(pair.variables) as path:
        variables = linen.load_checkpoint(path, *size[:2])
    return dataclasses.replace(pair, checkpoint=variables)


def plain(variables, x):
    params = variables["params"]
    norm = params["BatchNorm_0"]
    stats = variables["batch_stats"]["BatchNorm_0"]
    x = plain_dense(params["Dense_0"], x)
    scale = jax.lax.rsqrt(stats["var"] + 1e-5) * norm["scale"]
    x = (x - stats["mean"]) * scale + norm["bias"]
    return plain_dense(params["Dense_1"], jax.nn.relu(x))


problem = Problem(
    linen,
    nnx_side,
    pair=restored,
    sizes=[(3, 2)],
    cost=Forward(
        plain=plain,
        weights=lambda variables: variables,
        size=lambda layers: (32, 32, ()),
    ),
    mistakes=[
        Mistake("nnx", "model.eval()", "pass", "test_load_checkpoint"),
        Mistake(
            "nnx",
            "params[linen_name] | stats.get(linen_name, {})",
            "params[linen_name]",
            "test_load_checkpoint",
        ),
        Mistake(
            "nnx",
            "nnx.replace_by_pure_dict(state, values)",
            "nnx.replace_by_pure_dict(state, nnx.to_pure_dict(state))",
            "test_load_checkpoint",
        ),
        Mistake(
            "nnx",
            "linen_layout(model))",
            "jax.tree.map(jnp.zeros_like, linen_layout(model)))",
            "test_save_checkpoint",
        ),
        Mistake(
            "nnx",
            "nnx.state(loaded, nnx.Param)",
            "nnx.state(loaded)",
            "test_load_params",
        ),
        Mistake("nnx", '"norm": "BatchNorm_0"', '"norm": "norm"', "test_linen_layout"),
        Mistake(
            "linen",
            "return checkpointer.restore(path, target)",
            "return jax.tree.map(jnp.zeros_like, checkpointer.restore(path, target))",
            "test_load_checkpoint",
        ),
        Mistake(
            "linen",
            "use_running_average=not train",
            "use_running_average=train",
            "model",
        ),
        Mistake(
            "linen",
            '{**fresh, "params": loaded["params"]}',
            "loaded",
            "test_load_params",
        ),
        Mistake("linen", "jnp.ones(din)", "jnp.ones(din + 1)", "test_linen_layout"),
    ],
)
TestOrbaxLinenToNnx = problem.tests()


@contextlib.contextmanager
def checkpoint_path():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "checkpoint"


@contextlib.contextmanager
def saved(tree):
    """The path of a checkpoint of these arrays."""
    with checkpoint_path() as path:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, tree)
        yield path


def restore(path, target=None):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, target)


def assert_same(pair, variables, model, **how):
    """A loaded model holds these variables and computes the same."""
    parity.assert_equal(variables, pair.variables_of(model))
    parity.assert_parity(
        pair.linen,
        variables,
        model,
        *pair.arrays,
        linen_kwargs=pair.linen_kwargs,
        rename=RENAME,
        **how,
    )


@pytest.mark.parametrize(("din", "features", "jit"), [(3, 2, False), (33, 1, True)])
def test_load_checkpoint(din, features, jit):
    """What Linen saved, with statistics that are not those of a new model."""
    pair = mlp(din, features)
    with checkpoint_path() as path:
        linen.save_checkpoint(path, pair.variables)
        model = nnx_side.load_checkpoint(path, din, features)
        loaded = linen.load_checkpoint(path, din, features)
    parity.assert_equal(pair.variables, loaded)
    assert_same(pair, pair.variables, model, jit=jit)


def test_training_goes_on():
    pair = mlp(train=True)
    with saved(pair.variables) as path:
        model = nnx_side.load_checkpoint(path, 3, 2)
    model.train()
    assert_same(pair, pair.variables, model, jit=True)


def test_save_checkpoint():
    """The way back: Linen loads what nnx saved."""
    pair = mlp()
    with checkpoint_path() as path:
        nnx_side.save_checkpoint(path, pair.model)
        parity.assert_equal(pair.variables, linen.load_checkpoint(path, 3, 2))
        parity.assert_equal(
            linen.checkpoint_shapes(path), nnx_side.checkpoint_shapes(path)
        )


def test_linen_layout():
    abstract = nnx.eval_shape(lambda: mlp().model_from(0))
    shapes, ours = linen.linen_layout(3, 2), nnx_side.linen_layout(abstract)
    assert jax.tree.structure(ours) == jax.tree.structure(shapes)
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, shapes)


def test_load_params():
    """Random params and new statistics, in train mode."""
    pair = mlp(train=True)
    with saved(pair.variables) as path:
        loaded = linen.load_params(path, 3, 2)
        model = nnx_side.load_params(path, 3, 2)
    parity.assert_equal(pair.variables["params"], loaded["params"])
    fresh = {"mean": jnp.zeros(2), "var": jnp.ones(2)}
    parity.assert_equal({"BatchNorm_0": fresh}, loaded["batch_stats"])
    assert_same(pair, loaded, model, checks=["structure", "outputs", "state"])


def test_checkpoint_shapes():
    with saved(mlp().variables) as path:
        for side in (linen, nnx_side):
            assert side.checkpoint_shapes(path) == {
                "params": {
                    "Dense_0": {"kernel": (3, 2), "bias": (2,)},
                    "BatchNorm_0": {"scale": (2,), "bias": (2,)},
                    "Dense_1": {"kernel": (2, 2), "bias": (2,)},
                },
                "batch_stats": {"BatchNorm_0": {"mean": (2,), "var": (2,)}},
            }


def test_pitfall_a_checkpoint_of_another_width():
    """`ValueError: Requested shape: (3, 4) is not compatible with the stored shape: (3,
    2)`

    The target is of another width than the checkpoint. This is the one check of shapes
    on the way from disk to model: restore into a target.
    """
    kernel = jax.ShapeDtypeStruct((3, 4), jnp.float32)
    with (
        saved({"kernel": jnp.ones((3, 2))}) as path,
        pytest.raises(ValueError, match="is not compatible with the stored shape"),
    ):
        restore(path, {"kernel": kernel})


def test_pitfall_the_target_names_every_collection():
    """`ValueError: User-provided restore item and on-disk value metadata tree
    structures do not match`

    The target names every collection that is in the checkpoint. One with `params` alone
    raises this. Restore all and take what you need, as in "The params only" above.
    """
    with (
        saved(mlp().variables) as path,
        pytest.raises(ValueError, match="tree structures do not match"),
    ):
        restore(path, {"params": linen.linen_layout(3, 2)["params"]})


def test_pitfall_a_folder_that_exists():
    """`ValueError: Destination ... already exists`

    A save into a folder that exists raises this. Save each step under its own name.
    """
    with (
        saved(mlp().variables) as path,
        pytest.raises(ValueError, match=r"Destination .* already exists"),
    ):
        nnx_side.save_checkpoint(path, mlp().model)


def test_pitfall_replace_by_pure_dict_takes_any_shape_and_a_part():
    """`nnx.replace_by_pure_dict` takes any shape, and a part

    It stores a (7, 7) array in a kernel of shape (3, 2). Leaves that the dict lacks
    keep the values they had: in a real model those it was initialised with. Restore
    into a target, so that orbax has compared both before.
    """
    graphdef, state = nnx.split(mlp().model)
    before = nnx.to_pure_dict(state)
    values = {"hidden": {"kernel": jnp.zeros((7, 7))}}
    nnx.replace_by_pure_dict(state, values)
    model = nnx.merge(graphdef, state)
    assert model.hidden.kernel.shape == (7, 7)
    np.testing.assert_array_equal(model.output.kernel, before["output"]["kernel"])


def test_pitfall_layers_of_one_shape_swap_silently():
    """Two layers of one shape swap without an error

    With `Dense_0` and `Dense_1` swapped in the table of names, layers of the same shape
    load into each other's place. Names are yours to check: compare the outputs of both
    models.
    """
    pair = mlp(3, 3)
    swapped = {"hidden": "Dense_1", "norm": "BatchNorm_0", "output": "Dense_0"}
    with saved(pair.variables) as path:
        model = nnx_side.load_checkpoint(path, 3, 3)
        with mock.patch.object(nnx_side, "LINEN_NAMES", swapped):
            wrong = nnx_side.load_checkpoint(path, 3, 3)
    assert np.abs(model(*pair.arrays) - wrong(*pair.arrays)).max() > 0.1


def test_pitfall_a_loaded_model_is_in_train_mode():
    """A loaded model is in train mode

    Without `model.eval()`, BatchNorm normalizes with the batch and overwrites the
    statistics that were just loaded: the outputs differ from Linen's, and nothing is
    raised.
    """
    pair = mlp()
    variables, model, (x,) = pair.variables, pair.model, pair.arrays
    model.train()
    expected = pair.linen.apply(variables, x)
    mean = variables["batch_stats"]["BatchNorm_0"]["mean"]
    assert np.abs(model(x) - expected).max() > 0.1
    assert not np.array_equal(model.norm.mean, mean)
    model.norm.mean[...] = mean
    model.norm.var[...] = variables["batch_stats"]["BatchNorm_0"]["var"]
    model.eval()
    np.testing.assert_array_equal(model(x), expected)


def test_pitfall_params_without_their_statistics():
    """Params without their statistics

    With the params of the checkpoint and the statistics of a new model, evaluation
    gives other numbers, and nothing is raised.
    """
    pair = mlp()
    with saved(pair.variables) as path:
        model = nnx_side.load_params(path, 3, 2)
    model.eval()
    expected = pair.linen.apply(pair.variables, *pair.arrays)
    assert np.abs(model(*pair.arrays) - expected).max() > 0.1


def test_pitfall_the_target_decides_the_dtype():
    """The target decides the dtype

    A bfloat16 checkpoint restored into a float32 target is float32, on both sides. Cast
    the target to keep what was saved.
    """
    variables = dataclasses.replace(mlp(), dtype=jnp.bfloat16).variables
    with saved(variables) as path:
        model = nnx_side.load_checkpoint(path, 3, 2)
        loaded = linen.load_checkpoint(path, 3, 2)
    kernel = variables["params"]["Dense_0"]["kernel"].astype(jnp.float32)
    np.testing.assert_array_equal(model.hidden.kernel, kernel)
    np.testing.assert_array_equal(loaded["params"]["Dense_0"]["kernel"], kernel)
    assert model.hidden.kernel.dtype == jnp.float32


def test_pitfall_a_saved_state_has_one_level_more():
    """A saved `nnx.State` has one level more

    Restored without a target, its kernel is at `["hidden"]["kernel"]["value"]`. A pure
    dict as target raises a `ValueError`, `tree structures do not match`; a state as
    target fits. Save `nnx.to_pure_dict(state)` and the level is gone.
    """
    model = mlp().model
    state = nnx.state(model)
    with saved(state) as path:
        assert {*restore(path)["hidden"]["kernel"]} == {"value"}
        with pytest.raises(ValueError, match="tree structures do not match"):
            restore(path, nnx.to_pure_dict(state))
        parity.assert_equal(state, restore(path, state))
    with saved(nnx.to_pure_dict(state)) as path:
        np.testing.assert_array_equal(
            restore(path)["hidden"]["kernel"], model.hidden.kernel
        )


def test_pitfall_indices_of_a_list_come_back_as_text():
    """Indices of a list come back as text

    The keys of an `nnx.List` are numbers in a pure dict. Without a target orbax
    restores `"0"`, `"1"`, `"10"`, in the order of text; into a target, numbers in their
    order.
    """
    layers = nnx.List(nnx.Linear(1, 1, rngs=nnx.Rngs(i)) for i in range(11))
    pure = nnx.to_pure_dict(nnx.state(layers))
    with saved(pure) as path:
        assert [*restore(path)][:3] == ["0", "1", "10"]
        assert [*restore(path, pure)] == [*range(11)]


def test_pitfall_dropout_keys_of_an_abstract_model():
    """`TypeError: 'ShapeDtypeStruct' object is not subscriptable`

    A model from `nnx.eval_shape` holds abstract values until they are replaced, and no
    Linen checkpoint has a value for its RNG keys. Dropout raises this when it draws.
    Give the layer keys, `dropout.rngs = nnx.Rngs(0).fork()`, or build the real model
    and replace its values.
    """
    dropout = nnx.eval_shape(lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="'ShapeDtypeStruct' object is not"):
        dropout(jnp.ones(3))
    dropout.rngs = nnx.Rngs(0).fork()
    dropout(jnp.ones(3))
