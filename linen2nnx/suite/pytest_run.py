"""Run files of the suite in a pytest process, and follow what it reports."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from linen2nnx.suite import catalog

OPTIONS = [
    *("--override-ini", "addopts=", "--import-mode", "importlib"),
    *("-p", "no:cacheprovider", "-p", "no:randomly", "-p", "linen2nnx.suite.plugin"),
]
ENVIRONMENT = {
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTEST_ADDOPTS": "",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share a GPU
}


class PytestRun:
    """A pytest process; `stop` ends it, whatever it is doing.

    Attributes:
        total: how many tests it runs, once it has said so.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        options: Sequence[str | Path],
        environment: Mapping[str, str],
        folder: Path,
        name: str = "run",
        python: str | Path = sys.executable,
        root: Path | None = None,
        own_settings: bool = False,
    ) -> None:
        """Start it.

        Args:
            paths: what it runs.
            options: more of pytest's options.
            environment: variables that it gets besides this process's own.
            folder: an existing one, in which it works and writes.
            name: of its files there.
            python: the interpreter that runs it.
            root: the folder of the suite; None is this one's.
            own_settings: take pytest's settings and the folder from where the paths
                are, for tests that are not the suite's.
        """
        self.total = 0
        self._finished = False
        self._pending = ""
        events, self._log = folder / f"{name}.jsonl", folder / f"{name}.log"
        events.touch()
        self._events = events.open()
        root = root or catalog.root()
        command = [
            *(python, "-m", "pytest", *paths, *OPTIONS),
            *("--linen2nnx-events", events, *options),
        ]
        if own_settings:
            command += ["--import-mode", "prepend"]
        else:
            command += ["-c", root / "pyproject.toml", "--rootdir", root]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                cwd=None if own_settings else folder,
                env={**os.environ, **ENVIRONMENT, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def events(self) -> list[dict[str, Any]]:
        """What was reported since the last call, as the plugin wrote it."""
        *lines, self._pending = (self._pending + self._events.read()).split("\n")
        events = [json.loads(line) for line in lines]
        for event in events:
            if event["event"] == "collected":
                self.total = event["tests"]
            elif event["event"] == "finished":
                self._finished = event["exit_status"] in (0, 1)
        return events

    def error(self) -> str | None:
        """Why the process did not run every test to its end; None if it did."""
        return None if self._finished and self.total else self.last_words()

    def last_words(self) -> str:
        """How the process ended, and the last error in its log."""
        lines = self._log.read_text().strip().splitlines() or ["no output"]
        errors = [line for line in lines if line.startswith(("E  ", "ERROR"))]
        last = (errors or lines)[-1].removeprefix("E ").strip()
        return f"stopped with exit status {self._process.returncode}: {last}"

    def stop(self) -> None:
        """End the process, if it has not ended by itself."""
        self._events.close()
        self._process.kill()
        self._process.wait()
