"""The tutorial "Port your own model" says what really comes out."""

import importlib
import re
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from flax import nnx

from linen2nnx import mapping, parity

FOLDER = Path(__file__).parents[1] / "docs" / "tutorial" / "port"
NUMBER = re.compile(r"-?\d+\.\d+(e-?\d+)?")


@pytest.fixture
def files(monkeypatch):
    """The modules of the tutorial, and nothing of them left behind."""
    names = ("model_linen", "model_nnx", "test_port")
    monkeypatch.syspath_prepend(FOLDER)
    yield [importlib.import_module(name) for name in names]
    for name in names:
        del sys.modules[name]


@pytest.mark.parametrize(
    "name", ["names_differ", "same", "mode_differs", "activation_differs"]
)
def test_the_reports_on_the_page(files, name, monkeypatch):
    model_linen, model_nnx, test_port = files
    if name == "activation_differs":
        monkeypatch.setattr(model_nnx.nnx, "relu", lambda x: x)
    model = test_port.port()
    if name != "mode_differs":
        model.eval()
    report = parity.compare(
        model_linen.Classifier(5),
        None,
        model,
        test_port.IMAGES,
        linen_kwargs={"train": False},
        rename={} if name == "names_differ" else test_port.RENAME,
    )
    page = (FOLDER / f"{name}.txt").read_text()
    assert without_numbers(str(report)) == without_numbers(page)


def without_numbers(text):
    """Another CPU rounds otherwise, and a number less may move a line's end."""
    return " ".join(NUMBER.sub("#", text).split())


def test_the_tests_of_the_tutorial(files):
    *_, test_port = files
    test_port.test_evaluation()
    test_port.test_training()


def test_a_checkpoint_is_loaded(files):
    model_linen, model_nnx, test_port = files
    module, images = model_linen.Classifier(5), test_port.IMAGES
    variables, _ = parity.random_pair(
        module.init(nnx.Rngs(1).params(), images, train=False),
        test_port.port(),
        rename=test_port.RENAME,
    )
    model = model_nnx.Classifier(5, rngs=nnx.Rngs(0))
    model = mapping.to_nnx(variables, model, rename=test_port.RENAME)
    model.eval()
    expected = module.apply(variables, images, train=False)
    assert jnp.array_equal(model(images), expected)


def test_the_code_on_the_page_runs(files, capsys):
    page = (FOLDER.parent / "port.md").read_text()
    (code,) = re.findall(r"``` python\n(import.*?)```", page, re.DOTALL)
    exec(code, {})
    shown = (FOLDER / "names_differ.txt").read_text()
    assert without_numbers(capsys.readouterr().out) == without_numbers(shown)
