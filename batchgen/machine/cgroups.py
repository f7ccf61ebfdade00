"""Free memory under this process's control groups, versions 1 and 2, read from a machine's files. Knows no other limit.

`root` stands for `/`. Sources: the kernel's admin-guide/cgroup-v2.rst and admin-guide/cgroup-v1/memory.rst, cgroups(7),
cgroup_namespaces(7), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# v1 writes "no limit" as the maximum number of bytes, in whole pages: 2^63 - 4096, 2^63 - 65536, ...
UNLIMITED = 1 << 60
TOP = PurePosixPath("/")
# cgroup-v1/memory.rst 5.2: the lowest limit of a group and all its ancestors, including those outside the mount.
HIERARCHICAL = "hierarchical_memory_limit"


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of a group's files: limits that apply together, memory used, and the reclaimable part of it."""

    limits: tuple[str, ...]
    usage: str
    cache: str


V1 = Layout(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
V2 = Layout(("memory.max", "memory.high"), "memory.current", "inactive_file")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted hierarchy: `folder` has the files of the group `top`, and subfolders for the groups below it."""

    layout: Layout
    folder: Path
    top: PurePosixPath = TOP

    def shows(self, path: PurePosixPath) -> bool:
        """Whether the group at `path` is inside the mount; `/../x` is outside the process's cgroup namespace."""
        return ".." not in path.parts and path.is_relative_to(self.top)

    def groups(self, path: PurePosixPath) -> Iterator[tuple[PurePosixPath, Path]]:
        """Yield path and folder of the group at `path` and of each ancestor, deepest first.

        For a group outside the mount, yield only the top.
        """
        inner = path.relative_to(self.top).parts if self.shows(path) else ()
        for depth in range(len(inner), -1, -1):
            yield self.top.joinpath(*inner[:depth]), self.folder.joinpath(*inner[:depth])


def headrooms(root: Path) -> dict[str, int]:
    """Return the free bytes under each limit, keyed by the limit's name; negative if a group is over its limit."""
    found: dict[str, int] = {}
    mounts = _mounts(root)
    for layout, path in _memberships(root):
        candidates = [mount for mount in mounts if mount.layout == layout]
        for mount in [mount for mount in candidates if mount.shows(path)] or candidates:
            found |= dict(_headrooms(mount, path))
    return found


def read_lines(path: Path) -> list[str]:
    """Return the non-empty lines of a file, or none if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.split("\n") if line]


def _headrooms(mount: Mount, path: PurePosixPath) -> Iterator[tuple[str, int]]:
    for group, folder in mount.groups(path):
        statistics = _statistics(folder)
        limits = {name: _number(folder / name) for name in mount.layout.limits}
        if mount.layout is V1 and folder == mount.folder:
            limits[HIERARCHICAL] = statistics.get(HIERARCHICAL)
        known = {name: limit for name, limit in limits.items() if limit is not None}
        usage = _number(folder / mount.layout.usage)
        if known and usage is not None:
            tightest = min(known, key=lambda name: known[name])
            held = max(0, usage - (statistics.get(mount.layout.cache) or 0))
            yield f"cgroup {group} ({tightest})", known[tightest] - held


def _memberships(root: Path) -> Iterator[tuple[Layout, PurePosixPath]]:
    """Yield the groups of this process; if nothing says which, the top of whatever is mounted."""
    for line in read_lines(root / "proc/self/cgroup") or ["0::/", "1:memory:/"]:
        _hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")  # a group's name may contain colons
        if not controllers:
            yield V2, PurePosixPath(path)
        elif "memory" in controllers.split(","):
            yield V1, PurePosixPath(path)


def _mounts(root: Path) -> list[Mount]:
    lines = read_lines(root / "proc/self/mountinfo")
    if lines:
        return [mount for line in lines if (mount := _mount(root, line))]
    usual = root / "sys/fs/cgroup"
    return [Mount(V2, usual), Mount(V2, usual / "unified"), Mount(V1, usual / "memory")]


def _mount(root: Path, line: str) -> Mount | None:
    """Parse a line of mountinfo: `31 23 0:28 ROOT POINT rw shared:9 - TYPE SOURCE OPTIONS`. None for other types."""
    place, _, kind = line.partition(" - ")
    type_, _, source_and_options = kind.partition(" ")
    if type_ == "cgroup2":
        layout = V2
    elif type_ == "cgroup" and "memory" in source_and_options.split(" ")[-1].split(","):
        layout = V1
    else:
        return None
    top, point = (_unescaped(field) for field in place.split(" ")[3:5])
    return Mount(layout, root / point.lstrip("/"), PurePosixPath(top))


def _unescaped(field: str) -> str:
    r"""Decode a field of mountinfo, where space, tab, newline and backslash are octal.

    >>> _unescaped(r"/mnt/my\040groups")
    '/mnt/my groups'
    """
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _statistics(folder: Path) -> dict[str, int | None]:
    pairs = (line.partition(" ") for line in read_lines(folder / "memory.stat"))
    return {key: _limited(value) for key, _, value in pairs}


def _number(path: Path) -> int | None:
    return _limited("".join(read_lines(path)))


def _limited(text: str) -> int | None:
    """Parse a number of bytes; return None for `max` and other ways to say "no limit"."""
    text = text.strip()
    return int(text) if text.isdecimal() and int(text) < UNLIMITED else None
