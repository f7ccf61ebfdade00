"""The kind of file system that a folder is on. Knows nothing about what is stored there."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
# File systems that two machines may share, where memory mapped from a file is not the same on both.
NETWORK = re.compile(r"nfs|cifs|smb|9p|afs|ceph|lustre|gpfs|beegfs|gluster|ocfs|gfs2|fuse\.|virtiofs|ncp|orangefs")
OCTAL = re.compile(r"\\([0-7]{3})")  # how a mount point writes a space


def is_on_network(folder: Path, mounts: Path = MOUNTS) -> bool:
    """Whether another machine may see this folder too; False if the system does not say.

    File systems in user space (`fuse.…`) count as shared.
    """
    place = os.path.realpath(folder)
    found, kind = "", ""
    with suppress(OSError):
        for line in mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            point, name = line.split(" ")[1:3]
            point = OCTAL.sub(lambda match: chr(int(match[1], 8)), point)
            if len(point) >= len(found) and os.path.commonpath([place, point]) == point:
                found, kind = point, name
    return NETWORK.match(kind) is not None
