"""Recognize and name binary files by their first bytes."""

from __future__ import annotations

from batchgen.errors import InputError
from batchgen.formats.content import UTF8_BOM, Content, refuse_utf16

# Unsupported compressions and archives, by their first bytes and by their suffixes.
PACKING_MAGICS = {
    b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"PK\x03\x04": "ZIP", b"PK\x05\x06": "ZIP", b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"\x04\x22\x4d\x18": "LZ4", b"\x1f\x9d": "compress", b"Rar!\x1a\x07": "RAR", b"LZIP\x01": "lzip",
    b"\x5d\x00\x00": "LZMA", b"\xff\x06\0\0sNaPpY": "Snappy",
}  # fmt: skip
PACKING_SUFFIXES = {
    ".bz2": "bzip2", ".tbz2": "bzip2", ".xz": "xz", ".txz": "xz", ".zip": "ZIP", ".7z": "7-Zip", ".lz4": "LZ4",
    ".lzma": "LZMA", ".lz": "lzip", ".br": "Brotli", ".rar": "RAR", ".z": "compress", ".sz": "Snappy",
    ".tgz": "tar and gzip", ".tar": "tar",
}  # fmt: skip
UNPACK = "unpack it, or compress it with gzip or Zstandard"
MAGICS = {
    b"GGUF": "a GGUF model", b"\x89PNG": "a PNG image", b"\xff\xd8\xff": "a JPEG image", b"GIF8": "a GIF image",
    b"BM": "a BMP image", b"RIFF": "a RIFF file (WebP, WAV, AVI)", b"II*\0": "a TIFF image", b"MM\0*": "a TIFF image",
    b"%PDF-": "a PDF document", b"SQLite format 3\0": "an SQLite database", b"\x7fELF": "a program", b"MZ": "a program",
    b"\x93NUMPY": "a NumPy array", b"ARROW1": "an Arrow file", b"Obj\x01": "an Avro file", b"ORC": "an ORC file",
    b"\x89HDF": "an HDF5 file", b"\x80\x02": "a pickle", b"\x80\x03": "a pickle", b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle", b"PAR1": "a Parquet file", b"ID3": "an MP3 file", b"OggS": "an Ogg file",
    b"fLaC": "a FLAC file", b"\0\0\x01\0": "an icon", b"\xd0\xcf\x11\xe0": "an old Office document",
}  # fmt: skip
CERTAIN = {b"\x89PNG", b"\xff\xd8\xff", b"%PDF-"}
CONTROLS = bytes({*range(1, 7), *range(14, 27), *range(28, 32)})  # not in text: bell, escape, spaces may be
MOST_CONTROLS = 0.05  # share of the first bytes


def refuse_packing(content: Content) -> None:
    """Raise `InputError` for an unsupported compression or archive."""
    start = content.start()
    packing = next((name for magic, name in PACKING_MAGICS.items() if start.startswith(magic)), None)
    if packing == "bzip2" and start[4:10] != b"1AY&SY":  # a prompt may begin like this
        return
    if packing:
        raise InputError(f"{content.name} is compressed with {packing}, which is not supported: {UNPACK}")


def refuse_binary(content: Content, *, is_table: bool) -> None:
    """Raise `InputError` for binary content. A NUL byte in a table or JSON Lines only fails its row."""
    start = content.start().removeprefix(UTF8_BOM)
    refuse_utf16(start, content.name)
    if _is_utf16(start):
        fix = "convert it with `iconv -f UTF-16LE -t UTF-8` (or UTF-16BE)"
        raise InputError(f"{content.name} is binary, or UTF-16 without a byte order mark: {fix}")
    what = known_kind(start) if is_table else binary_kind(start)
    if what:
        raise InputError(f"{content.name} is {what}, not text: give prompts, or set --input-format")


def binary_kind(start: bytes) -> str | None:
    """The kind of a binary file, judged by its first bytes; None for text."""
    return known_kind(start) or ("binary" if b"\0" in start or _has_controls(start) else None)


def known_kind(start: bytes) -> str | None:
    """The kind of binary file with this beginning, or None. If text may begin the same way, a NUL byte must follow."""
    kind = next((magic for magic in MAGICS if start.startswith(magic)), None)
    if kind is None or (kind not in CERTAIN and b"\0" not in start[:256] and _is_utf8(start)):
        return None
    return MAGICS[kind]


def _has_controls(start: bytes) -> bool:
    return not _is_utf8(start) and sum(start.count(sign) for sign in CONTROLS) > MOST_CONTROLS * len(start)


def _is_utf8(start: bytes) -> bool:
    """Whether bytes are UTF-8; the last character may be cut off."""
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.end == len(start) and error.reason == "unexpected end of data"
    return True


def _is_utf16(start: bytes) -> bool:
    """Whether exactly every second byte of the beginning is NUL: Latin letters of two bytes each."""
    pairs = start[:64][: len(start[:64]) // 2 * 2]
    even, odd = pairs[::2], pairs[1::2]
    return len(even) > 1 and ((not any(odd) and all(even)) or (not any(even) and all(odd)))
