"""The command `linen2nnx compare`, on models in files of a folder."""

import json
import re
import sys
from pathlib import Path

import flax.linen as nn
import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from linen2nnx import cli, mapping, named

LINEN = """
import flax.linen as nn


class Classifier(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="hidden")(x)
        x = nn.relu(nn.LayerNorm(name="norm")(x))
        return nn.Dense(self.classes, name="out")(x)
"""
PORT = """
from flax import nnx


class Classifier(nnx.Module):
    def __init__(self, din, classes, *, rngs):
        self.hidden = nnx.Linear(din, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.out = nnx.Linear(8, classes, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.norm(self.hidden(x))))
"""
MODELS = """
import functools
import flax.linen as nn
import jax.numpy as jnp
import model_linen, model_nnx
from flax import nnx
from linen2nnx import Pair

linen = functools.partial(model_linen.Classifier, 3)
module = model_linen.Classifier(3)
number = 3
pair = Pair(module, functools.partial(model_nnx.Classifier, 4, 3), [(5, 4)])


def port(rngs):
    return model_nnx.Classifier(4, 3, rngs=rngs)


instance = port(nnx.Rngs(0))


def epsilon(rngs):
    model = port(rngs)
    model.norm.epsilon = 1e-3
    return model


class Linen(nn.Module):
    @nn.compact
    def __call__(self, ids, mask=None, train=True):
        x = nn.Embed(7, 4)(ids) * jnp.where(mask, 1.0, 0.5)[..., None]
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, ids, mask=None):
        x = self.embed(ids) * jnp.where(mask, 1.0, 0.5)[..., None]
        return self.out(self.dropout(x))
"""
ASKED = ["--input", "float32[5,4]"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with modules that a command names, and nothing of them left behind."""
    files = {"model_linen": LINEN, "model_nnx": PORT, "my_models": MODELS}
    for name, source in files.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in files:
        sys.modules.pop(name, None)


def run(linen, port, *options):
    arguments = ["compare", f"my_models:{linen}", f"my_models:{port}", *options]
    result = CliRunner().invoke(cli.app, arguments)
    return result.exit_code, re.sub(r"\s+", " ", result.stdout), result.stderr


@pytest.mark.parametrize(("linen", "port"), [("linen", "port"), ("module", "instance")])
def test_the_same(linen, port, folder):
    status, out, error = run(linen, port, *ASKED)
    assert (status, error) == (0, "")
    assert "the same in every check" in out
    assert "optimizer step" in out


def test_a_difference_and_where_it_is(folder):
    status, out, _ = run("linen", "epsilon", *ASKED, "--jit", "--checks", "outputs")
    assert status == 1
    assert "under jax.jit" in out
    assert "first diverging module: Linen norm (LayerNorm) nnx norm (LayerNorm)" in out
    assert "epsilon is 1e-06 in Linen and 0.001 in nnx" in out
    assert "gradients" not in out


def test_names_that_do_not_fit_are_a_difference(folder):
    asked = ["--input", "int32[2,5]<7", "--input", "mask=bool[2,5]"]
    status, out, _ = run("Linen", "Port", *asked, "--eval")
    assert status == 1
    assert '"Embed_0": "embed"' in out


@pytest.mark.parametrize("form", ["options", "file"])
def test_renames_modes_and_keyword_inputs(form, folder):
    names = {"Embed_0": "embed", "Dense_0": "out"}
    (folder / "names.json").write_text(json.dumps(names))
    renames = [f"{a}={b}" for a, b in names.items()]
    asked = ["--input", "int32[2,5]<7", "--input", "mask=bool[2,5]"]
    for rename in renames if form == "options" else ["names.json"]:
        asked += ["--rename", rename]
    checks = ["--checks", "structure,outputs,round-trip"]
    status, out, error = run(
        "Linen", "Port", *asked, *checks, "--eval", "--linen-kwargs", "train=False"
    )
    assert (status, error) == (0, "")
    status, out, _ = run("Linen", "Port", *asked, *checks, "--linen-kwargs=train=False")
    assert status == 1
    assert "deterministic is True in Linen and False in nnx" in out
    status, out, error = run("Linen", "Port", *asked, *checks)
    assert status == 2
    assert error.startswith("linen2nnx: InvalidRngError: Dropout_0 needs PRNG")
    assert "linen_kwargs={'train': False}" in error
    status, out, _ = run("Linen", "Port", *asked, *checks, "--randomness", "same-keys")
    assert status == 0
    assert "randomness: same keys" in out


@pytest.mark.parametrize("form", ["msgpack", "npz", "params", "train state", "orbax"])
def test_a_checkpoint(form, folder, recwarn):
    import model_linen

    variables = model_linen.Classifier(3).init(jax.random.key(5), jnp.ones((1, 4)))
    path = folder / "checkpoint"
    if form == "orbax":
        import orbax.checkpoint as checkpoint  # flax brings it along

        checkpoint.PyTreeCheckpointer().save(path, variables)
    elif form == "npz":
        path = path.with_suffix(".npz")
        flat = flax.traverse_util.flatten_dict(variables, sep="/")
        np.savez(path, **flat)
    else:
        content = {
            "msgpack": variables,
            "params": variables["params"],
            "train state": {**variables, "step": 3, "opt_state": {}},
        }[form]
        path.write_bytes(flax.serialization.to_bytes(content))
    read = named.read_variables(path, jax.eval_shape(lambda: variables))
    jax.tree.map(np.testing.assert_array_equal, read, variables)
    if form == "msgpack":
        status, _, error = run("linen", "instance", *ASKED, "--variables", str(path))
        assert (status, error) == (0, "")


def test_inputs_from_files(folder):
    array = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    np.save("x.npy", array)
    np.savez("positional.npz", array, array + 1)
    np.savez("named.npz", left=array, right=array + 1)
    inputs, keywords = named.read_inputs(
        ["x.npy", "positional.npz", "named.npz", "both=named.npz", "mask=x.npy"]
    )
    assert [value.ravel()[0] for value in inputs] == [0, 0, 1]
    assert {*keywords} == {"left", "right", "both", "mask"}
    assert {*keywords["both"]} == {"left", "right"}


def test_random_inputs():
    inputs, keywords = named.read_inputs(
        ["float32[3, 200]", "bfloat16[2]", "int32[500]<4", "bool[64]", "t=float32[]"]
    )
    assert [str(value.dtype) for value in inputs] == [
        "float32",
        "bfloat16",
        "int32",
        "bool",
    ]
    assert abs(inputs[0].mean()) < 0.2
    assert {*inputs[2].tolist()} == {0, 1, 2, 3}
    assert 0 < inputs[3].sum() < 64
    assert keywords["t"].shape == ()


@pytest.mark.parametrize(
    ("linen", "port", "options", "message"),
    [
        (
            "linen",
            "port",
            ["--input", "int32[2]"],
            "needs a bound, such as int32[",
        ),
        ("linen", "port", ["--input", "x"], "input 'x' is none; it takes a .npy"),
        ("linen", "port", ["--input", "float7[2]"], "has no dtype"),
        ("linen", "port", ["--input", "no.npy"], "no.npy cannot be read"),
        (
            "linen",
            "port",
            [*ASKED, "--rename", "no.json"],
            "neither Dense_0=hidden",
        ),
        ("linen", "port", [*ASKED, "--linen-kwargs", "train"], "it takes train=False"),
        (
            "linen",
            "port",
            [*ASKED, "--checks", "output"],
            "check is 'output'; it",
        ),
        ("linen", "port", [*ASKED, "--randomness", "x"], "randomness is 'x'; it takes"),
        ("linen", "port", [*ASKED, *ASKED], "Linen Classifier takes (x"),
        ("linen", "port", [*ASKED, "--variables", "no"], "no does not exist"),
        ("linen", "port", [*ASKED, "--variables", "my_models.py"], "is no checkpoint"),
        ("none", "port", ASKED, "my_models has no none"),
        ("number", "port", ASKED, "number is a int, and no model"),
        ("port", "port", ASKED, "my_models:port needs rngs"),
        ("model_linen.Classifier", "port", ASKED, "Classifier needs classes; name a"),
        ("linen", "model_nnx.Classifier", ASKED, "Classifier needs din, classes"),
        ("linen", "module", ASKED, "gives a Classifier, and no nnx module"),
        ("instance", "instance", ASKED, "gives a Classifier, and no Linen module"),
    ],
)
def test_what_cannot_be_told_is_one_line(linen, port, options, message, folder):
    status, out, error = run(linen, port, *options)
    assert (status, out) == (2, "")
    assert message in error
    assert error.startswith("linen2nnx: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("Model", "'Model' names no model; it takes package.module:Model"),
        ("no_such_module:Model", "there is no module no_such_module in"),
        ("os.no_such:Model", "there is no module os.no_such in"),
    ],
)
def test_a_name_that_leads_nowhere(spec, message):
    with pytest.raises(named.CompareError, match=re.escape(message)):
        named._linen_model(spec)


def test_a_checkpoint_of_another_model(tmp_path):
    path = tmp_path / "other"
    path.write_bytes(flax.serialization.to_bytes({"a": {"kernel": np.ones(2)}}))
    shapes = jax.eval_shape(nn.Dense(2).init, jax.random.key(0), jnp.ones(3))
    with pytest.raises(named.CompareError, match="holds a; the Linen model needs"):
        named.read_variables(path, shapes)


PAGE = Path(__file__).parents[1] / "docs" / "parity.md"


def test_the_code_on_the_page_runs(folder):
    first, *blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    names = {"mapping": mapping, "nn": nn}
    exec("\n".join([first, "test_port()", *blocks]), names)
    assert names["report"].randomness == "same keys"


def test_the_report_on_the_page_is_what_is_printed(folder):
    """Apart from the figures, which depend on the machine."""

    def without_figures(text):
        return re.sub(r"\s+", " ", re.sub(r"-?\d+\.\d+", "0", text))

    (quoted,) = re.findall(r"```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
    _, out, _ = run("linen", "epsilon", *ASKED)
    assert without_figures(quoted).strip() in without_figures(out)


def test_the_options_on_the_page_are_those_of_the_command():
    shown = CliRunner().invoke(cli.app, ["compare", "--help"]).stdout
    of_command = {*re.findall(r"--[a-z][-a-z]+", shown)} - {"--help"}
    assert {*re.findall(r"--[a-z][-a-z]+", PAGE.read_text())} == of_command


def run_alone(*arguments):
    result = CliRunner().invoke(cli.app, ["compare", *arguments])
    return result.exit_code, re.sub(r"\s+", " ", result.stdout), result.stderr


def test_a_pair_is_named_alone(folder):
    status, out, error = run_alone("my_models:pair", "--jit", "--checks", "outputs")
    assert (status, error) == (0, "")
    assert "both sides under jax.jit" in out
    assert "gradients" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["my_models:pair", *ASKED], "beside a Pair, which says the rest itself"),
        (["my_models:pair", "--eval"], "beside a Pair, which says the rest itself"),
        (["my_models:linen", *ASKED], "is a partial, and no Pair; name the nnx model"),
        (["my_models:linen", "my_models:port"], "--input is missing"),
    ],
)
def test_a_pair_takes_no_model_beside_it(arguments, message, folder):
    status, out, error = run_alone(*arguments)
    assert (status, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1
