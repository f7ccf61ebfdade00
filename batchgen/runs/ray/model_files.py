"""Distributes a model's files to every machine of a cluster through Ray's object store."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from batchgen.model.find import MORE_TEMPLATES


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model's folder, and its files in Ray's object store, from which each machine without them fetches them once."""

    name: str
    folder: Path
    sizes: dict[str, int]
    files: dict[str, Any] = field(default_factory=dict)  # name -> ObjectRef; empty if there is only one machine

    def unpack(self) -> Path:
        """Return a folder with the files on this machine."""
        if not self.files or all(_has_size(self.folder / name, size) for name, size in self.sizes.items()):
            return self.folder
        import ray

        references = "".join(sorted(map(str, self.files.values())))
        key = blake2b(references.encode(), digest_size=8).hexdigest()
        target = Path(tempfile.gettempdir()) / f"batchgen-{os.getuid()}-{key}"
        if target.is_dir():
            return target
        partial = Path(tempfile.mkdtemp(prefix="batchgen-", dir=target.parent))
        for name, ref in self.files.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_bytes(ray.get(ref))
        try:
            partial.rename(target)
        except OSError:  # another worker of this machine was faster
            shutil.rmtree(partial)
        return target


def model_paths(folder: Path) -> dict[str, Path]:
    """Return the files of a model's folder, keyed by name; of its subfolders, only the one with chat templates."""
    paths = sorted([*folder.iterdir(), *folder.glob(MORE_TEMPLATES)])
    return {path.relative_to(folder).as_posix(): path for path in paths if path.is_file()}


def _has_size(path: Path, size: int) -> bool:
    with suppress(OSError):
        return path.stat().st_size == size
    return False
