"""Print the lowest versions that pyproject.toml allows, as constraints for pip: `make test-lowest` installs them.

    tools/lowest.py [EXTRA…]

For indirect dependencies, pip chooses the newest versions that fit.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
FLOOR = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,-]+\])?>=(?P<version>[\w.]+)(?P<marker>;.*)?")


def lowest(project: dict[str, Any], extras: list[str]) -> Iterator[str]:
    """`name==floor` for each dependency, and for those of the given extras.
    >>> extras = {"x": ["d>=3; python_version<'4'", "batchgen[y]"], "y": ["e>=1"]}
    >>> list(lowest({"dependencies": ["a>=1", "b[c]>=2.0"], "optional-dependencies": extras}, ["x"]))
    ['a==1', 'b==2.0', "d==3; python_version<'4'"]
    """
    more = (line for extra in extras for line in project["optional-dependencies"][extra])
    for line in (*project["dependencies"], *more):
        if line.startswith("batchgen["):
            continue
        floor = FLOOR.fullmatch(line)
        if floor is None:
            raise SystemExit(f"{line}: give it a floor and nothing else (name>=version)")
        yield f"{floor['name']}=={floor['version']}{floor['marker'] or ''}"


if __name__ == "__main__":
    print(*lowest(tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"], sys.argv[1:]), sep="\n")
