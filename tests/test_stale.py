"""What `linen2nnx stale` lists."""

import pytest
from typer.testing import CliRunner

from linen2nnx import cli
from linen2nnx.suite import catalog, kept, records
from linen2nnx.suite.digests import digest_of
from linen2nnx.suite.records import Bytecodes, Cost, Parity
from linen2nnx.suite.stale import stale

P, Q = catalog.ProblemFiles("state/p"), catalog.ProblemFiles("state/q")


def record(kind, problem, digest=None, flax="0.12.12", **fields):
    return kind(
        digest=digest_of(problem, kind.__name__.lower()) if digest is None else digest,
        environment={"flax": flax, "jax": "0.12.0.1", "python": "3.12"},
        date="2026-11-26T01:15:00+00:00",
        command="",
        **fields,
    )


def parity(problem, **fields):
    return record(Parity, problem, modes={}, **fields)


def cost(problem, device="cpu", **fields):
    return record(Cost, problem, device=device, measurements=[], **fields)


def counts(problem, **fields):
    return record(Bytecodes, problem, counts=[], **fields)


def put(problem, *found):
    results = kept.load(problem, kept.results_folder())
    for each in found:
        results.put(each)
    records.save(results, kept.results_folder() / f"{problem.name}.json")


@pytest.fixture
def current(clone):
    """The folder of a clone where nothing is stale."""
    for problem in (P, Q):
        put(problem, parity(problem), cost(problem), counts(problem))
    return clone / "docs" / "results"


PARITY = "`linen2nnx check --save --only state/p`"
COST = "`linen2nnx bench --save state/p`"
BYTECODES = "`linen2nnx bench --bytecodes --save state/p`"


def test_every_release_counts(current):
    assert stale(current) == []
    put(P, parity(P, flax="0.12.8"), counts(P, flax="0.12.8"))
    assert stale(current) == []
    put(P, parity(P, digest="", flax="0.12.13"), counts(P, digest="", flax="0.13.0"))
    put(P, parity(P, digest="", flax="0.9.0"))
    assert stale(current) == [
        "state/p: parity of other code on flax 0.9.0, 0.12.13; "
        "`linen2nnx check 0.9.0 0.12.13 --save --only state/p` renews it",
        f"state/p: bytecodes of other code on flax 0.13.0; {BYTECODES} renews it",
    ]


def test_what_is_missing_is_listed(current):
    (current / "state" / "p.json").unlink()
    assert stale(current) == [
        f"state/p: no parity yet; {PARITY} measures it",
        f"state/p: no cost on cpu yet; {COST} measures it",
        f"state/p: no bytecodes yet; {BYTECODES} measures it",
    ]


def test_figures_of_a_gpu_may_be_missing_and_not_be_stale(current):
    put(Q, cost(Q, device="gpu"))
    assert stale(current) == []
    put(Q, cost(Q, device="gpu", digest=""))
    assert stale(current) == [
        f"state/q: cost on gpu of other code; {COST.replace('/p', '/q')} renews it"
    ]


def test_a_comment_makes_nothing_stale_and_an_edit_one_problem(current):
    P.path("linen").write_text("# A comment.\n")
    assert stale(current) == []
    P.path("linen").write_text("x = 1\n")
    assert [line.partition(";")[0] for line in stale(current)] == [
        "state/p: parity of other code on flax 0.12.12",
        "state/p: cost on cpu of other code",
        "state/p: bytecodes of other code on flax 0.12.12",
    ]


def test_command(current):
    ran = CliRunner().invoke(cli.app, ["stale"])
    assert (ran.exit_code, ran.stdout) == (0, "")
    put(P, cost(P, digest=""))
    path = current / "state" / "q.json"
    path.write_text("[]")
    ran = CliRunner().invoke(cli.app, ["stale"])
    assert ran.exit_code == 1
    of_other_code, damaged = ran.stdout.splitlines()
    assert damaged.startswith(f"{path} holds no linen2nnx results")
    assert of_other_code == f"state/p: cost on cpu of other code; {COST} renews it"


def test_command_outside_of_a_clone(clone):
    (clone / "docs").rmdir()
    ran = CliRunner().invoke(cli.app, ["stale"])
    assert ran.exit_code == 2
    assert "results are kept in a clone of linen2nnx" in ran.stderr
