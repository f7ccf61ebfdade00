"""Optional packages that some formats need, checked before anything slow starts."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from batchgen.errors import BatchgenError, InputError, OutputError
from batchgen.formats.compression import ZSTD, ZSTD_MODULES, split_suffixes
from batchgen.formats.sources import Source

# By extra: alternative modules, one of which is enough, and the package to install. The name `batchgen` on PyPI belongs
# to another project, so messages name the packages.
MODULES = {"parquet": ("pyarrow.parquet",), "zstd": ZSTD_MODULES}
PACKAGES = {"parquet": "pyarrow", "zstd": "backports.zstd"}


def need(extra: str, what: str, error: type[BatchgenError]) -> None:
    """Raise `error` if none of an extra's modules is installed."""
    for module in MODULES[extra]:
        with suppress(ImportError):
            import_module(module)
            return
    raise error(f"{what} needs another package: pip install {PACKAGES[extra]}")


def check_input_extras(sources: Iterable[Source], input_format: str | None = None) -> None:
    """Raise `InputError` for a source whose name shows that it needs an extra that is not installed."""
    for source in sources:
        if (input_format or source.form) == "parquet" and not source.texts:
            need("parquet", f"{source.name}: Parquet", InputError)
        if source.packing == ZSTD:
            need("zstd", f"{source.name}: Zstandard", InputError)


def check_output_extras(form: str, path: Path | None = None) -> None:
    """Raise `OutputError` if the packages for an output format, or for the compression of `path`, are missing."""
    if form == "parquet":
        need("parquet", "Parquet", OutputError)
    if path is not None and split_suffixes(path)[1] == ZSTD:
        need("zstd", f"{path}: Zstandard", OutputError)
