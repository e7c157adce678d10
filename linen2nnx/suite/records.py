"""Results that are kept: typed records, each with what gave it.

In a clone `docs/results/<chapter>/<problem>.json` holds what was measured of a problem;
the folder of `linen2nnx.files.cache_folder` holds one record a file, so that what has
ended once need not run again. Both are JSON of this form:

    {
      "format": "linen2nnx results",
      "version": 1,
      "problem": "surgery/replace_kernel",
      "records": [
        {
          "kind": "parity",
          "digest": "<of the code>",
          "environment": {"python": "3.12.1", "flax": "0.12.12", ..., "device": "..."},
          "date": "2026-11-26T01:15:00+00:00",
          "command": "linen2nnx check --save",
          "modes": {"graph": {"tests": 23, "compared": {...}, ...}, "tree": {...}}
        },
        {"kind": "cost", ..., "device": "cpu", "measurements": [...]},
        {"kind": "bytecodes", ..., "counts": [...]}
      ]
    }

A difference that is infinite or nan is the text `inf` or `nan`: JSON has neither.
"""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from packaging.version import Version

from linen2nnx.files import write_whole

FORMAT, VERSION = "linen2nnx results", 1

Kind = Literal["parity", "cost", "bytecodes"]
Verdict = Literal["holds", "differs", "fails", "pitfall changed", "nothing ran"]
Difference = float | Literal["inf", "nan"]

_T = TypeVar("_T")


class RecordError(ValueError):
    """A file holds no records that this version reads."""


class Compared(msgspec.Struct):
    """What one check compared.

    Attributes:
        leaves: how many leaves.
        largest_difference: of any of them; `inf` and `nan` are text.
    """

    leaves: int = 0
    largest_difference: Difference = 0.0


class Failure(msgspec.Struct, frozen=True):
    """A test that failed, and what it raised."""

    test: str
    message: str


class Warned(msgspec.Struct, frozen=True):
    """A warning, and the file and line of ours that led to it."""

    message: str
    where: str


class Outcome(msgspec.Struct):
    """What became of one problem in one mode.

    Attributes:
        tests: how many tests ran.
        compared: by check.
        warnings: each distinct one.
        failures: each failed test.
    """

    tests: int = 0
    compared: dict[str, Compared] = {}
    warnings: list[Warned] = []
    failures: list[Failure] = []

    @property
    def verdict(self) -> Verdict:
        """The worst that happened.

        `differs`: the two sides computed different numbers. `fails`: a test raised
        something else. `pitfall changed`: parity holds, and a pitfall that the page
        states is no longer what flax does.
        """
        if not self.tests and not self.failures:
            return "nothing ran"
        kinds = {verdict_of(failure) for failure in self.failures}
        for kind in ("differs", "fails", "pitfall changed"):
            if kind in kinds:
                return kind
        return "holds"

    @property
    def largest_difference(self) -> float:
        """The largest difference over all checks."""
        return largest(c.largest_difference for c in self.compared.values())


class Measurement(msgspec.Struct):
    """What one idiom costs beside Linen's.

    Attributes:
        what: what is timed: `jitted`, `eager`, `edit` or a part of the first call.
        idiom: its name.
        mode: of nnx; None where it makes no difference.
        layers: None for a problem of one layer.
        ratio: of its time to Linen's: the geometric mean of the processes.
        interval: the least and greatest ratio of any process.
        rounds: of all processes.
        control: the ratio of Linen's to itself that is farthest from 1.
        clock: `cpu time` or `wall time`.
        seconds: per call, the least of any process.
        linen_seconds: likewise of Linen.
    """

    what: str
    idiom: str
    mode: Literal["graph", "tree"] | None
    layers: int | None
    ratio: float
    interval: tuple[float, float]
    rounds: int
    control: float
    clock: Literal["cpu time", "wall time"]
    seconds: float
    linen_seconds: float


class Count(msgspec.Struct):
    """How many Python bytecodes a call executes; None if the idiom raised `error`."""

    what: str
    idiom: str
    mode: Literal["graph", "tree"] | None
    layers: int | None
    bytecodes: int | None
    error: str = ""


class Record(msgspec.Struct, kw_only=True, tag_field="kind"):
    """What every record has: what gave it.

    Attributes:
        digest: of the code, by `linen2nnx.suite.digests.digest_of`.
        environment: versions, and the device where it counts.
        date: in UTC, ISO 8601.
        command: that renews it.
    """

    digest: str
    environment: dict[str, str]
    date: str
    command: str

    def __post_init__(self) -> None:
        """Refuse an environment that does not say which flax and jax it is."""
        for name in ("flax", "jax"):
            Version(self.environment.get(name, f"no {name} in the environment"))


class Parity(Record, kw_only=True, tag="parity"):
    """What the parity tests of a problem showed, by mode of nnx."""

    modes: dict[str, Outcome]

    @property
    def key(self) -> tuple[str, ...]:
        """What a newer record has in common with the one that it replaces."""
        return "parity", self.environment["flax"], self.environment["jax"]

    @property
    def holds(self) -> bool:
        """Whether the problem holds in every mode."""
        outcomes = self.modes.values()
        return bool(outcomes) and all(o.verdict == "holds" for o in outcomes)


class Cost(Record, kw_only=True, tag="cost"):
    """What its idioms cost on one device.

    Attributes:
        device: what JAX computed on.
        measurements: one for each idiom, at each number of layers.
        not_published: why what is missing there was not published.
    """

    device: Literal["cpu", "gpu"]
    measurements: list[Measurement]
    not_published: list[str] = []

    @property
    def key(self) -> tuple[str, ...]:
        """What a newer record has in common with the one that it replaces."""
        return "cost", self.device


class Bytecodes(Record, kw_only=True, tag="bytecodes"):
    """How many Python bytecodes its idioms execute on one release."""

    counts: list[Count]

    @property
    def key(self) -> tuple[str, ...]:
        """What a newer record has in common with the one that it replaces."""
        return "bytecodes", *(self.environment[n] for n in ("flax", "jax", "python"))


AnyRecord = Parity | Cost | Bytecodes


class Results(msgspec.Struct, kw_only=True):
    """The file of one problem."""

    format: str = FORMAT
    version: int = VERSION
    problem: str
    records: list[AnyRecord] = []

    def parity(self) -> list[Parity]:
        """Its records of parity, in the order of the file."""
        return [r for r in self.records if isinstance(r, Parity)]

    def cost(self, device: str) -> Cost | None:
        """What its idioms cost on that device; None if that was not measured."""
        costs = (r for r in self.records if isinstance(r, Cost))
        return next((r for r in costs if r.device == device), None)

    def bytecodes(self) -> list[Bytecodes]:
        """Its records of bytecodes, in the order of the file."""
        return [r for r in self.records if isinstance(r, Bytecodes)]

    def put(self, record: AnyRecord) -> None:
        """Add a record in the place of an older one of the same key."""
        others = [r for r in self.records if r.key != record.key]
        self.records = sorted([*others, record], key=_order)


def load(path: Path) -> Results:
    """Read the file of one problem. The inverse of `save`.

    Raises:
        RecordError: in one line, if it holds no records that this version reads.
        OSError: if it cannot be read.
    """
    return read(path, Results)


def save(results: Results, path: Path) -> None:
    """Write the file of one problem, in one step. The inverse of `load`.

    Raises:
        OSError: if it cannot be written; the old file is left then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write(results, path)


def save_all(results: Sequence[Results], path: Path) -> None:
    """Write what was measured of several problems as one file, in one step.

    It is `{"format": ..., "version": ..., "problems": [...]}` with the content of each
    problem's file. The inverse of `load_all`.

    Raises:
        OSError: if it cannot be written.
    """
    write(_All(problems=[*results]), path)


def load_all(path: Path) -> list[Results]:
    """Read what `save_all` wrote.

    Raises:
        RecordError: in one line, if it holds no records that this version reads.
        OSError: if it cannot be read.
    """
    return read(path, _All).problems


class _All(msgspec.Struct, kw_only=True):
    format: str = FORMAT
    version: int = VERSION
    problems: list[Results]


class _Head(msgspec.Struct):
    format: str = ""
    version: int = 0


def read(path: Path, content_type: type[_T]) -> _T:
    """Read a file of results of that type. The inverse of `write`.

    Raises:
        RecordError: in one line, if it is no such file.
        OSError: if it cannot be read.
    """
    content = path.read_bytes()
    try:
        head = msgspec.json.decode(content, type=_Head)
        if (head.format, head.version) != (FORMAT, VERSION):
            raise RecordError(f"{path} holds no {FORMAT} of version {VERSION}")
        return msgspec.json.decode(content, type=content_type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"{path} holds no {FORMAT}: {error}") from error


def write(content: msgspec.Struct, path: Path) -> None:
    """Write a file of results, in one step. The inverse of `read`.

    Raises:
        OSError: if it cannot be written; the old file is left then.
    """
    plain = _finite(msgspec.to_builtins(content))
    text = msgspec.json.format(msgspec.json.encode(plain), indent=1)
    write_whole(path, text + b"\n")


def now() -> str:
    """The date of a record that is made now."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def largest(differences: Iterable[Difference]) -> float:
    """The largest difference: nan if any is nan, and 0.0 where there is none."""
    numbers = [float(difference) for difference in differences]
    return next((d for d in numbers if math.isnan(d)), max(numbers, default=0.0))


def is_pitfall(test: str) -> bool:
    """Whether a test shows a pitfall, rather than parity."""
    return "::test_pitfall_" in test


def verdict_of(failure: Failure) -> Verdict:
    """The verdict that one failure gives."""
    if is_pitfall(failure.test):
        return "pitfall changed"
    differs = "ParityError" in failure.message.partition(":")[0]
    return "differs" if differs else "fails"


def _order(record: AnyRecord) -> tuple[Any, ...]:
    """By kind, and then by device or by versions."""
    kind, *rest = record.key
    return kind, *(rest if isinstance(record, Cost) else map(Version, rest))


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf"
    return value
