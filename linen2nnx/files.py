"""Files that are written whole, and the folders of what is kept between runs."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import platformdirs


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file in one step, so that no reader sees half of it.

    What is no file, such as `/dev/stdout`, is written to as it is.

    Raises:
        OSError: if it cannot be written; nothing is left of it then.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def digest(parts: Iterable[bytes]) -> str:
    """The start of the SHA-256 of all parts: 20 hexadecimal digits.

    Example:
        >>> digest([b"a", b"b"]) == digest([b"ab"])
        False
    """
    found = hashlib.sha256()
    for part in parts:
        found.update(hashlib.sha256(part).digest())
    return found.hexdigest()[:20]


def cache_folder() -> Path:
    """Where results, environments and compiled programs are kept between runs.

    `LINEN2NNX_CACHE` names another one than the user's.
    """
    named = os.environ.get("LINEN2NNX_CACHE")
    return Path(named) if named else platformdirs.user_cache_path("linen2nnx")


def compilation_cache(folder: Path) -> dict[str, str]:
    """Environment variables with which JAX compiles each program once per folder."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def compiled_folder() -> Path:
    """Where compiled programs of the installed versions are kept."""
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    versions = [f"{name}{version(name)}" for name in ("jax", "jaxlib", "flax")]
    return cache_folder() / "compiled" / "-".join([python, *versions])
