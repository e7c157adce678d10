"""An isolated environment for each flax release, made by uv and kept in a cache.

The user's own environment is never touched. An environment is built in a folder of its
own and moved to its place when it is whole, so that neither an interruption nor a
second check at the same time leaves half of one.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

import linen2nnx
from linen2nnx.files import cache_folder, digest, write_whole
from linen2nnx.releases import table as releases
from linen2nnx.suite import catalog

NEEDED = (  # for optax, flax and jax decide
    "jaxtyping>=0.3.0",
    "msgspec>=0.20",
    "numpy>=2.0",
    "optax",
    "platformdirs>=4.0",
    "pytest>=8.4",
    "rich>=14.0",
)


class UpgradeError(RuntimeError):
    """The check of releases cannot begin."""


class InstallError(RuntimeError):
    """One environment could not be made."""


class Stopped(Exception):  # noqa: N818 - no error: the user asked for it
    """The check was interrupted."""


@dataclass(frozen=True)
class Spec:
    """One release to check.

    Attributes:
        name: as it was asked for, such as `0.12.6+jax0.10.2`.
        flax: version; of a local copy, that of its wheel.
        flax_source: what uv installs, such as `flax==0.12.6` or the path of a wheel.
        jax: what uv installs, such as `jax<=0.10.2`.
        note: how the jax was chosen, where the table does not say.
    """

    name: str
    flax: str
    flax_source: str
    jax: str
    note: str = ""


@dataclass(frozen=True)
class Environment:
    """An environment that is ready.

    Attributes:
        folder: where it is.
        packages: version of each installed package; of a local flax, with the start of
            its SHA-256.
    """

    folder: Path
    packages: Mapping[str, str]

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "venv" / "bin" / "python"


class Children:
    """Processes of one check. `stop` ends those that run; none starts after it."""

    def __init__(self) -> None:
        """None yet."""
        self._stopped = threading.Event()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """End all."""
        self._stopped.set()

    def run(
        self,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        folder: Path,
        limit: float,
    ) -> tuple[int | None, str, str]:
        """Run a command to its end.

        Returns:
            Exit status, standard output and standard error; the status is None where
            it ran longer than `limit` seconds.

        Raises:
            Stopped: if `stop` was called.
        """
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=dict(environment),
                cwd=folder,
            )
            deadline = time.monotonic() + limit
            try:
                while process.poll() is None and time.monotonic() < deadline:
                    if self.stopped:
                        raise Stopped
                    time.sleep(0.02)
                status = process.poll()
            finally:
                process.kill()
                process.wait()
            out.seek(0)
            err.seek(0)
            return status, out.read(), err.read()


class Uv:
    """uv with one Python.

    Attributes:
        python: the interpreter's path.
        python_version: such as `3.12.1`.
        children: the processes that uv belongs to.
    """

    LIMIT = 600.0

    def __init__(self, python: str | None, children: Children) -> None:
        """Find uv and the Python.

        Args:
            python: a version such as `3.12`, the path of an interpreter, or None for
                the one that runs this.
            children: the processes that uv belongs to.

        Raises:
            UpgradeError: if there is no uv, or no such Python on this machine.
        """
        self.children = children
        self._command = [_find_uv(), "--no-progress", "--color", "never"]
        self._environment = _environment_of_uv()
        if python is None:
            self.python = sys.executable
            self.python_version = platform.python_version()
            return
        status, out, _ = self._run("python", "find", "--no-python-downloads", python)
        self.python = out.strip()
        if status != 0:
            raise UpgradeError(
                f"there is no Python {python} on this machine; "
                f"`uv python install {python}` installs it"
            )
        show = "import platform; print(platform.python_version())"
        _, out, _ = children.run(
            [self.python, "-I", "-c", show], os.environ, Path.cwd(), self.LIMIT
        )
        self.python_version = out.strip()

    @property
    def can_count_bytecodes(self) -> bool:
        """Whether that Python has `sys.monitoring`."""
        return Version(self.python_version) >= Version("3.12")

    def newest(self, package: str) -> str:
        """The newest release of a package that this Python can have.

        Raises:
            InstallError: if uv cannot say.
        """
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "requirements.txt"
            source.write_text(package)
            status, out, error = self._run(
                *("pip", "compile", "--quiet", "--no-header", "--no-annotate"),
                *("--no-deps", "--python", self.python, str(source)),
            )
        if status != 0:
            raise InstallError(_cause(error))
        return out.strip().partition("==")[2]

    def wheel(self, source: Path, cache: Path) -> Path:
        """The wheel of a local folder, or a wheel itself, copied to the cache.

        Its folder there is named by its content: uv takes a wheel at the same path for
        the same wheel.

        Raises:
            InstallError: if the folder cannot be built.
        """
        with tempfile.TemporaryDirectory() as folder:
            if source.is_dir():
                status, _, error = self._run(
                    *("build", "--quiet", "--wheel", "--python", self.python),
                    *("--out-dir", folder, str(source)),
                )
                if status != 0:
                    raise InstallError(_cause(error))
                source = next(Path(folder).glob("*.whl"))
            content = source.read_bytes()
        kept = _folder(cache / "wheels" / digest([content])) / source.name
        if not kept.is_file():
            write_whole(kept, content)
        return kept

    def environment(
        self, spec: Spec, requirements: Sequence[str], cache: Path
    ) -> Environment:
        """The environment of one release: from the cache, or made now.

        Raises:
            InstallError: if it could not be made.
        """
        wanted = [spec.flax_source, spec.jax, *NEEDED, *requirements]
        files = [w.partition("=")[2] for w in wanted if w.startswith("--requirements=")]
        texts = [Path(file).read_text() for file in files]
        key = json.dumps([self.python, self.python_version, wanted, texts])
        name = digest([key.encode()])
        folder = _folder(cache / "environments") / name
        listed = folder / "packages.json"
        if not listed.is_file():
            made = Path(tempfile.mkdtemp(prefix="making-", dir=folder.parent))
            try:
                listing = self._make(made, wanted)
                if (wheel := Path(spec.flax_source)).suffix == ".whl":
                    listing["flax"] += f" {wheel.parent.name}"
                (made / listed.name).write_text(json.dumps(listing, indent=2))
                os.rename(made, folder)
            except OSError as error:
                if not listed.is_file():  # else another check was quicker
                    raise InstallError(str(error)) from error
            finally:
                shutil.rmtree(made, ignore_errors=True)
        return Environment(folder, json.loads(listed.read_text()))

    def _make(self, folder: Path, wanted: Sequence[str]) -> dict[str, str]:
        venv = str(folder / "venv")
        for command in (
            ["venv", "--python", self.python, venv],
            ["pip", "install", "--python", venv, *wanted],
        ):
            status, _, error = self._run("--quiet", *command)
            if status != 0:
                raise InstallError(_cause(error) if status else "it took too long")
        _, out, _ = self._run("pip", "list", "--format", "json", "--python", venv)
        return {row["name"]: row["version"] for row in json.loads(out)}

    def _run(self, *arguments: str) -> tuple[int | None, str, str]:
        command = [*self._command, *arguments]
        return self.children.run(
            command, self._environment, Path(tempfile.gettempdir()), self.LIMIT
        )


def parse(
    arguments: Iterable[str], uv: Uv, cache: Path, *, newest_jax: bool = False
) -> list[Spec | tuple[str, str]]:
    """The releases that the arguments of `linen2nnx check` name.

    Args:
        arguments: each a version, `current`, `latest`, `A..B`, `X+jaxY`, or the path of
            a wheel or of a folder that a wheel can be built from.
        uv: looks `latest` up and builds wheels.
        cache: where those wheels are kept.
        newest_jax: take the newest jax, whatever the table says.

    Returns:
        A spec for each; or its name and why it cannot be installed.

    Raises:
        UpgradeError: if an argument is none of these.
    """
    found: list[Spec | tuple[str, str]] = []
    for argument in arguments:
        for name in _releases_in(argument):
            try:
                found.append(_spec(name, uv, cache, newest_jax))
            except InstallError as error:
                found.append((name, str(error)))
    return list(dict.fromkeys(found))


def _releases_in(argument: str) -> list[str]:
    first, dots, last = argument.partition("..")
    if not dots or Path(argument).exists():
        return [argument]
    try:
        known = releases.between(first, last)
    except InvalidVersion:
        known = []
    if not known:
        raise UpgradeError(
            f"{argument} names no release; a range takes two, such as 0.12.6..0.12.8"
        )
    return list(dict.fromkeys([first, *known, last]))


def _spec(name: str, uv: Uv, cache: Path, newest_jax: bool) -> Spec:
    path = Path(name)
    base, plus, jax = name.partition("+jax")
    if path.exists():
        wheel = uv.wheel(path.resolve(), cache)
        try:
            flax, source = str(parse_wheel_filename(wheel.name)[1]), str(wheel)
        except InvalidWheelFilename as error:
            raise UpgradeError(f"{name} is no wheel: {error}") from error
        plus = ""
    elif base in ("current", "latest"):
        flax = installed_version("flax") if base == "current" else uv.newest("flax")
        source = f"flax=={flax}"
        if base == "current" and not plus:
            plus, jax = "+jax", installed_version("jax")
    else:
        flax, source = _version(base, name), f"flax=={base}"
    if plus:
        return Spec(name, flax, source, f"jax=={_version(jax, name)}")
    row = releases.find(flax)
    if newest_jax:
        return Spec(name, flax, source, "jax", "jax: the newest, as asked")
    if row is None:
        note = f"the table does not know flax {flax}; jax: the newest that uv takes"
        return Spec(name, flax, source, "jax", note)
    return Spec(name, flax, source, f"jax<={row.newest_working_jax}")


def _version(text: str, name: str) -> str:
    try:
        return str(Version(text))
    except InvalidVersion as error:
        raise UpgradeError(
            f"{name!r} is no release; it takes a version such as 0.12.8, "
            "0.12.8+jax0.10.2, a range such as 0.12.6..0.12.8, current, latest, or the "
            "path of a wheel or folder of flax"
        ) from error


def suite_copy(cache: Path) -> Path:
    """A copy of the suite and of what it needs of this library, named by its content.

    An environment imports it from there: linen2nnx itself is not installed in it,
    because its own floor of flax would not let older releases in.
    """
    package = Path(linen2nnx.__file__).parent
    root = catalog.root()
    files = {
        f"linen2nnx/{path.relative_to(package)}": path.read_bytes()
        for path in package.rglob("*.py")
        if "problems" not in path.relative_to(package).parts
    }
    for name in ("linen_impl", "nnx_impl", "parity_tests"):
        for path in (root / name).rglob("*.py"):
            files[str(path.relative_to(root))] = path.read_bytes()
    files["pyproject.toml"] = (root / "pyproject.toml").read_bytes()
    number = installed_version("linen2nnx")
    metadata = f"Metadata-Version: 2.1\nName: linen2nnx\nVersion: {number}\n"
    files[f"linen2nnx-{number}.dist-info/METADATA"] = metadata.encode()
    name = digest([part for item in sorted(files.items()) for part in _bytes(item)])
    folder = _folder(cache / "suites") / name
    if not folder.is_dir():
        made = Path(tempfile.mkdtemp(prefix="making-", dir=folder.parent))
        for file, content in files.items():
            (made / file).parent.mkdir(parents=True, exist_ok=True)
            (made / file).write_bytes(content)
        try:
            os.rename(made, folder)
        except OSError:  # another check was quicker
            shutil.rmtree(made, ignore_errors=True)
    return folder


def isolated(root: Path) -> dict[str, str]:
    """This process's environment variables, for a process that imports from `root`."""
    leaking = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP")
    kept = {name: value for name, value in os.environ.items() if name not in leaking}
    return kept | {
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_PLATFORMS": "cpu",
    }


def _bytes(item: tuple[str, bytes]) -> tuple[bytes, bytes]:
    return item[0].encode(), item[1]


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _find_uv() -> str:
    try:
        import uv

        return uv.find_uv_bin()
    except (ImportError, FileNotFoundError):
        if found := shutil.which("uv"):
            return found
    raise UpgradeError("there is no uv; `pip install uv` installs it")


def _environment_of_uv() -> dict[str, str]:
    """With pip's index where uv has none, and each Python of pyenv to be found."""
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    has_index = {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & environment.keys()
    if not has_index and (index := _pip_index(environment)):
        environment["UV_DEFAULT_INDEX"] = index
    root = Path(environment.get("PYENV_ROOT", Path.home() / ".pyenv"))
    path = environment.get("PATH", "").split(os.pathsep)
    path = [folder for folder in path if Path(folder) != root / "shims"]
    path += [str(folder) for folder in sorted(root.glob("versions/*/bin"))]
    return environment | {"PATH": os.pathsep.join(path)}


def _pip_index(environment: Mapping[str, str]) -> str:
    """The index that pip is set to, which uv does not read; empty if to none."""
    if index := environment.get("PIP_INDEX_URL"):
        return index
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


_NETWORK = ("error sending request", "dns error", "client error (Connect)")


def _cause(error: str) -> str:
    """One line that says why uv failed."""
    text = re.sub(r"\s*\n\s*", " ", error.strip())
    if any(words in error for words in _NETWORK) or "was disabled" in error:
        return "the package index cannot be reached; check the network and try again"
    if "No space left" in error:
        return f"no space is left on the disk of {cache_folder()}"
    if match := re.search(r"Because (there is no version of .+?)(,| and )", text):
        return match[1]
    ours = re.search(r"the current Python version \(([\d.]+)\) does not", text)
    asks = re.search(r"(\S+==\S+) depends on (Python[\d.,<>=!~]*[\d])", text)
    if ours and asks:
        return f"{asks[1]} takes {asks[2]}, and this is Python {ours[1]}"
    return text.removeprefix("error: ") or "uv failed without a message"
