"""A suite that tests measure in place of this one."""

import shutil

import pytest

from linen2nnx.suite import catalog

TESTS = '''
import os

import pytest
from linen2nnx.cost import paired

if hasattr(os, "sched_getaffinity"):  # before a file is imported, which may use JAX
    assert len(os.sched_getaffinity(0)) == 1


class TestP:
    def test_parity(self):
        """It is none of the benchmark's."""
        raise AssertionError

    @pytest.mark.cost
    @pytest.mark.benchmark(timer=paired.recorded_time)
    @pytest.mark.parametrize("name", ["jitted, nnx.jit (tree mode), 4 layers"])
    def test_cost(self, benchmark, name):
        linen, ours = ("Linen", None), ("nnx.jit", "tree")
        samples = {linen: [1.0, 1.5, 1.0, 1.0, 1.0], ours: [2.5, 2.0, 2.0, 2.0, 9.0]}
        times = paired.Comparison(
            "cpu time", linen, {"cpu time": samples}, {"cpu time": samples[linen]}
        )
        labels = {"problem": "state/p", "what": "jitted", "layers": 4}
        paired.record(benchmark, times, ours, **labels)
'''


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone of `state/p` and `state/q`, which cost nothing, and an empty cache."""
    root = tmp_path / "clone"
    for folder in ("linen_impl", "nnx_impl", "parity_tests"):
        (root / folder / "state").mkdir(parents=True)
    for name in "pq":
        for folder in ("linen_impl", "nnx_impl"):
            (root / folder / "state" / f"{name}.py").write_text('"""A problem."""\n')
        (root / "parity_tests" / "state" / f"test_{name}.py").write_text(TESTS)
    (root / "docs").mkdir()
    shutil.copy(catalog.root() / "pyproject.toml", root)
    monkeypatch.setattr(catalog, "root", lambda: root)
    monkeypatch.setenv("LINEN2NNX_CACHE", str(tmp_path / "cache"))
    return root
