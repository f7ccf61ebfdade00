"""Packages that only some formats need, asked for before anything takes time."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from batchgen.errors import BatchgenError, InputError, OutputError
from batchgen.formats.compression import ZSTD, ZSTD_MODULES, split_suffixes
from batchgen.formats.sources import Source

# By extra: the modules that any one of will do, and what brings it. The name `batchgen` on the package index is another
# project's, so messages name the packages.
MODULES = {"parquet": ("pyarrow.parquet",), "zstd": ZSTD_MODULES}
PACKAGES = {"parquet": "pyarrow", "zstd": "backports.zstd"}


def need(extra: str, what: str, error: type[BatchgenError]) -> None:
    """Raises `error` where none of an extra's packages is installed."""
    for module in MODULES[extra]:
        with suppress(ImportError):
            import_module(module)
            return
    raise error(f"{what} needs another package: pip install {PACKAGES[extra]}")


def check_input_extras(sources: Iterable[Source], input_format: str | None = None) -> None:
    """Raises `InputError` for a source that cannot be read without an extra, as far as its name says so."""
    for source in sources:
        if (input_format or source.form) == "parquet" and not source.texts:
            need("parquet", f"{source.name}: Parquet", InputError)
        if source.packing == ZSTD:
            need("zstd", f"{source.name}: Zstandard", InputError)


def check_output_extras(form: str, path: Path | None = None) -> None:
    """Raises `OutputError` where results cannot be written in a format, or packed as a file's name says."""
    if form == "parquet":
        need("parquet", "Parquet", OutputError)
    if path is not None and split_suffixes(path)[1] == ZSTD:
        need("zstd", f"{path}: Zstandard", OutputError)
