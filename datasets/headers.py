"""Sizes and modes of image files from their first bytes, without decoding: what the fast check of data reads."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import ExifTags, Image

from common.errors import UserError

PNG_MODES = {0: "greyscale", 2: "RGB", 3: "palette", 4: "greyscale with alpha", 6: "RGBA"}
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG SOF markers


@dataclass(frozen=True)
class Header:
    """What the first bytes of an image file say. A JPEG that its EXIF turns by a quarter has the size that it shows."""

    kind: str  # PNG or JPEG
    width: int
    height: int
    mode: str  # one of PNG_MODES; JPEG: colour
    exif: bool = False  # whether a JPEG has one


def read_header(path: str | Path) -> Header:
    """Read width, height and mode of a PNG or JPEG file; UserError where it is missing, empty or neither."""
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            head = stream.read(2048)
            header = _png(head) if head[:8] == b"\x89PNG\r\n\x1a\n" else None
            if head[:2] == b"\xff\xd8":
                header = _jpeg(head)
                if header is None:  # a long preamble (EXIF, a colour profile)
                    header = _jpeg(head + stream.read())
                if header is not None and header.exif and _turned(path):
                    header = replace(header, width=header.height, height=header.width)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); add or restore it") from error
    if header is None:
        what = "is empty" if not head else "is no whole PNG or JPEG file"
        raise UserError(f"{path}: the file {what}; fetch or write it again")
    return header


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of an image file, by its header."""
    header = read_header(path)
    return header.width, header.height


def _png(data: bytes) -> Header | None:
    if len(data) < 33 or data[12:16] != b"IHDR":
        return None
    width, height, _, colour = struct.unpack(">IIBB", data[16:26])
    return Header("PNG", width, height, PNG_MODES.get(colour, f"colour type {colour}"))


def _jpeg(data: bytes) -> Header | None:
    place, exif = 2, False
    while place + 9 <= len(data):
        if data[place] != 0xFF:
            return None
        marker = data[place + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD9 or marker == 0x01:  # fill byte; markers without a length
            place += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAME_HEADERS:
            height, width = struct.unpack(">HH", data[place + 5 : place + 9])
            return Header("JPEG", width, height, "colour", exif)
        exif = exif or data[place + 4 : place + 10] == b"Exif\0\0"
        place += 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]
    return None


def _turned(path: Path) -> bool:
    """Whether a JPEG's EXIF turns the picture by a quarter, as OpenCV does when it reads it."""
    with Image.open(path) as image:
        try:
            return image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        except (SyntaxError, TypeError, ValueError, struct.error):  # an EXIF that nobody can read turns nothing
            return False


def cut_short(path: str | Path) -> bool:
    """Whether a PNG or JPEG file lacks its end marker, as after a broken download or a full disk."""
    with open(path, "rb") as stream:
        start = stream.read(4)
        stream.seek(0, 2)
        stream.seek(max(stream.tell() - 64, 0))
        end = stream.read()
        if start == b"\x89PNG":
            return b"IEND" not in end
        if b"\xff\xd9" in end:
            return False
        stream.seek(0)  # bytes may follow the picture: look for its end in the later half of the file
        data = stream.read()
    return data.rfind(b"\xff\xd9", len(data) // 2) < 0
