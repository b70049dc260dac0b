"""Label maps from the bytes of PNG files: the values that Pillow gives, cheaper for the usual palette PNG."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"


class NotALabelMap(ValueError):
    """The bytes are no PNG with one value a pixel; the message says what they are."""


def decode_labels(data: bytes) -> np.ndarray:
    """Decode a PNG file's bytes to its pixel values, (H, W) uint8, or uint16 for 16-bit files.

    Palette files give the index, grey ones the value, 1-bit ones 0 and 1. Raises NotALabelMap for other formats,
    colours, and corrupt or truncated files.
    """
    if not data.startswith(SIGNATURE):
        raise NotALabelMap("the file is empty" if not data else f"{_kind(data)} instead of a PNG file")
    header, compressed = _checked_chunks(data)
    labels = _plain_palette(header, compressed)
    return labels if labels is not None else _by_pillow(data)


def _kind(data: bytes) -> str:
    for start, kind in ((b"\xff\xd8", "JPEG data"), (b"BM", "BMP data"), (b"GIF8", "GIF data"), (b"RIFF", "WebP data"),
                        (b"II*\0", "TIFF data"), (b"MM\0*", "TIFF data")):
        if data.startswith(start):
            return kind
    return "unknown data"


def _checked_chunks(data: bytes) -> tuple[bytes, bytes]:
    """The header and the compressed pixels, every checksum verified: Pillow ignores those of the pixels."""
    position, compressed, header = len(SIGNATURE), [], b""
    while True:
        if position + 12 > len(data):
            raise NotALabelMap("the PNG is corrupt or cut short (no end)")
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8:position + 8 + length]
        end = position + 12 + length
        if end > len(data):
            raise NotALabelMap("the PNG is corrupt or cut short (a chunk has no end)")
        if zlib.crc32(body, zlib.crc32(kind)) != struct.unpack_from(">I", data, end - 4)[0]:
            raise NotALabelMap("the PNG is corrupt or cut short (a checksum is wrong)")
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            compressed.append(body)
        elif kind == b"IEND":
            return header, b"".join(compressed)
        position = end


def _plain_palette(header: bytes, compressed: bytes) -> np.ndarray | None:
    """Decode an 8-bit palette PNG whose rows are unfiltered, as encoders write them; None where it is anything else.

    Whatever is unusual is left to Pillow, so that its verdict is the one that counts.
    """
    # 8 bits, palette, deflate, adaptive filters, not interlaced
    if len(header) != 13 or header[8:] != b"\x08\x03\0\0\0":
        return None
    width, height = struct.unpack(">II", header[:8])
    try:
        raw = zlib.decompress(compressed, bufsize=height * (width + 1))
    except zlib.error:
        return None
    if len(raw) != height * (width + 1):
        return None
    rows = np.frombuffer(raw, np.uint8).reshape(height, width + 1)  # a filter byte, then the row
    return None if rows[:, 0].any() else rows[:, 1:]


def _by_pillow(data: bytes) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            mode = image.mode
            labels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        raise NotALabelMap(f"the PNG is corrupt or cut short ({error})") from error
    if labels.ndim != 2:
        raise NotALabelMap(f"a {mode} image instead of one index a pixel")
    if labels.dtype == np.bool_:
        return (labels.view(np.uint8) != 0).astype(np.uint8)  # Pillow's own True may be the byte 255
    return labels if labels.dtype == np.uint8 else labels.astype(np.uint16)
