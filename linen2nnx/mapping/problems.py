"""Everything that is wrong with a mapping, as one error."""

from collections import defaultdict

from linen2nnx.leaves import MappingError


class Problems:
    """Everything wrong with a mapping, so that one error says all of it."""

    def __init__(self) -> None:
        """Nothing is wrong yet."""
        self.by_kind: dict[str, list[str]] = defaultdict(list)
        self.suggestions: list[str] = []

    def add(self, kind: str, what: str) -> None:
        """Note one more that is wrong in this way."""
        self.by_kind[kind].append(what)

    def raise_if_any(self) -> None:
        """Raise a `MappingError` that says all of it, if there is any."""
        if not self.by_kind:
            return
        lines = ["Linen variables and nnx model do not correspond."]
        for kind, entries in self.by_kind.items():
            lines += [f"{kind}:", *(f"    {entry}" for entry in entries)]
        if self.suggestions:
            choice = any("  # or " in line for line in self.suggestions)
            why = " (where there is a choice, by the order of names)" if choice else ""
            lines += [
                f"Same leaves, shapes and dtypes, so perhaps{why}:",
                "    rename={",
            ]
            lines += [f"        {line}" for line in self.suggestions]
            lines += ["    }"]
        raise MappingError("\n".join(lines))
