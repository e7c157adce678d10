"""Build or serve the pages.

    python -m pages build
    python -m pages serve

Run it from a clone. It first says all that is wrong with the pages and their sources, a
line each; where anything is, it stops there.
"""

import argparse
import sys

from pages import faults, site


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m pages", description="Build or serve the pages."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build them into the folder site")
    build.add_argument("--builder", choices=("mkdocs", "zensical"), default="mkdocs")
    commands.add_parser("serve", help="serve them on this machine")
    arguments = parser.parse_args()
    if found := faults.find():
        print(*found, sep="\n", file=sys.stderr)
        sys.exit(f"pages: {len(found)} faults" if len(found) > 1 else "pages: 1 fault")
    try:
        if arguments.command == "build":
            site.build(arguments.builder)
        else:
            site.serve()
    except site.BuildError as error:
        sys.exit(f"pages: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
