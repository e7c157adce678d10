"""What is expected of each problem is data with a cause, and the kept records agree."""

from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from linen2nnx.releases.verdicts import verdict_on
from linen2nnx.suite import catalog, expected, kept

RESULTS = Path(__file__).parents[1] / "docs" / "results"


@pytest.mark.parametrize("problem", catalog.problems(), ids=lambda p: p.name)
def test_the_records_are_as_expected(problem):
    """On each release and in each mode; and each entry holds on one of them."""
    unused = {(entry, mode) for entry in expected.of(problem) for mode in entry.modes}
    wrong = []
    for record in kept.load(problem, RESULTS).parity():
        flax = record.environment["flax"]
        for mode, outcome in record.modes.items():
            found = verdict_on(outcome, flax).verdict
            wanted = expected.find(problem.name, mode, flax)
            unused.discard((wanted, mode))
            if found != wanted.verdict:
                wrong.append(f"flax {flax}, {mode} mode: {found}; expected: {wanted}")
    assert not wrong
    assert not unused


@pytest.mark.parametrize("problem", catalog.problems(), ids=lambda p: p.name)
def test_every_entry_has_a_cause(problem):
    for entry in expected.of(problem):
        assert entry.verdict != "holds"
        assert len(entry.cause) > 10
        assert SpecifierSet(entry.flax)


@pytest.fixture
def problem(tmp_path, monkeypatch):
    (tmp_path / "parity_tests" / "state").mkdir(parents=True)
    monkeypatch.setattr(catalog, "root", lambda: tmp_path)
    return catalog.ProblemFiles("state/p")


ROW = '{"flax": "<0.12", "modes": ["graph"], "verdict": "fails", "cause": "a cause"}'


def test_a_list_is_read_without_importing_its_file(problem):
    problem.test_path().write_text(f"import nowhere\nEXPECTED = [{ROW}]\n")
    assert expected.find("state/p", "graph", "0.11.2").verdict == "fails"
    assert str(expected.find("state/p", "graph", "0.11.2")) == "fails (a cause)"
    assert expected.find("state/p", "graph", "0.11.2rc1").verdict == "fails"
    assert expected.find("state/p", "graph", "0.12.0").verdict == "holds"
    assert expected.find("state/p", "tree", "0.11.2").verdict == "holds"
    problem.test_path().write_text("import nowhere, as_well\n")
    assert expected.of(problem) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[x]", "malformed node"),
        (f"{ROW}", "Expected `array`, got `object`"),
        (f"[{ROW.replace('fails', 'broken')}]", "Invalid enum value 'broken'"),
        (f"[{ROW.replace('graph', 'leaf')}]", "Invalid enum value 'leaf'"),
        (f"[{ROW.replace('cause', 'why', 1)}]", "unknown field `why`"),
        (f"[{ROW.replace('<0.12', 'all')}]", "Invalid specifier: 'all'"),
    ],
)
def test_a_list_that_is_none_is_one_line(problem, text, message):
    problem.test_path().write_text(f"\nEXPECTED = {text}\n")
    with pytest.raises(expected.ExpectedError) as raised:
        expected.of(problem)
    assert str(raised.value).startswith("parity_tests/state/test_p.py:2: EXPECTED is")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
