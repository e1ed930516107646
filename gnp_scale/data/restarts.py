"""JPEGs of which the part around a crop can be decoded alone: restart markers, and an index of them.

The entropy-coded data of a JPEG can be read from its start, or from a restart marker (ITU-T T.81, E.1.4). If markers
divide each row of blocks into equal segments, then the segments around a crop are a JPEG of their own, with another
size in its header. With the fast upsampling of libjpeg-turbo its pixels are bitwise those of the whole picture.

`gnp-scale data prepare --restart-markers` adds the markers, without decoding, and the index as a segment for
applications, which other programs ignore.

A block is an MCU of T.81: 8 or more rows and columns of pixels. R rows of blocks, S segments in each, N segments, K of
them in a cut.
"""

import struct
import subprocess
from typing import NamedTuple

import numpy as np

from gnp_scale.data.crops import Box

JPEGTRAN = "jpegtran"
"""The program of libjpeg-turbo that adds restart markers."""
_MOST_SEGMENTS = 16
"""In a row of blocks. Each costs about 5 bytes, with its entry in the index."""
_MOST_ENTRIES = 32_000
"""Of an index: a segment for applications has at most 65,533 bytes."""

_START_OF_SCAN, _FIRST_RESTART, _END_OF_IMAGE, _APPLICATION = 0xDA, 0xD0, 0xD9, 0xE9
_FRAMES = (0xC0, 0xC1, 0xC2)
"""Sequential and progressive."""
_NAME = b"gnp_scale restarts\0"
_LAYOUT = struct.Struct(">6H")


class _Index(NamedTuple):
    """Where the segments of a JPEG lie, in the order of `_LAYOUT`; offsets are from the end of the index."""

    num_rows: int
    num_segments: int
    block_height: int
    segment_width: int
    size_at: int
    """Offset of height and width in the header of the frame."""
    scan_at: int
    """Offset of the first segment."""

    def fits(self, height: int, width: int) -> bool:
        """Whether the segments cover a picture of this size."""
        spare_rows = self.num_rows * self.block_height - height
        spare_columns = self.num_segments * self.segment_width - width
        return 0 <= spare_rows < self.block_height and 0 <= spare_columns < self.segment_width


class _Header(NamedTuple):
    """What the header of a JPEG says; `size_at` and `scan_at` are offsets in the file."""

    num_rows: int
    num_columns: int
    block_height: int
    block_width: int
    size_at: int
    scan_at: int


def cut(data: bytes, box: Box) -> tuple[bytes | bytearray, Box]:
    """A JPEG with the pixels in `box` and few more, and the box in it; `data` itself if it has no index."""
    index_at = _end_of_first_segment(data)
    name_at = index_at + 4
    if data[name_at : name_at + len(_NAME)] != _NAME:
        return data, box
    index_end = index_at + 2 + _number(data, index_at + 2)
    try:
        index = _Index(*_LAYOUT.unpack_from(data, name_at + len(_NAME)))
        num_entries = index.num_rows * index.num_segments
        length_N = np.frombuffer(data, ">u2", num_entries, name_at + len(_NAME) + _LAYOUT.size).astype(np.int64)
    except (struct.error, ValueError):
        return data, box
    size_at, scan_at = index_end + index.size_at, index_end + index.scan_at
    end_N = np.cumsum(length_N) + scan_at
    height, width = _number(data, size_at), _number(data, size_at + 2)
    if not num_entries or end_N[-1] != len(data) or not index.fits(height, width):
        return data, box

    top, bottom = box.top // index.block_height, -(-(box.top + box.height) // index.block_height)
    left, right = box.left // index.segment_width, -(-(box.left + box.width) // index.segment_width)
    length_K, end_K = (x.reshape(index[:2])[top:bottom, left:right] for x in (length_N, end_N))
    top, left = top * index.block_height, left * index.segment_width
    new_height = min(height, bottom * index.block_height) - top
    new_width = min(width, right * index.segment_width) - left
    size = struct.pack(">2H", new_height, new_width)
    header = [data[:index_at], data[index_end:size_at], size, data[size_at + 4 : scan_at]]
    # The segments of a row are side by side. Each ends with a marker.
    rows = zip((end_K - length_K)[:, 0].tolist(), end_K[:, -1].tolist(), strict=True)
    part = bytearray(b"".join([*header, *(data[start:end] for start, end in rows)]))
    marker_at = np.cumsum(length_K) + (sum(map(len, header)) - 1)
    marker = _FIRST_RESTART + np.arange(len(marker_at)) % 8
    marker[-1] = _END_OF_IMAGE
    np.frombuffer(part, np.uint8)[marker_at] = marker
    return part, Box(box.top - top, box.left - left, box.height, box.width)


def with_restart_markers(data: bytes) -> bytes:
    """The same picture, with restart markers and an index for `cut`; other Huffman tables and no metadata.

    It is made by jpegtran, without decoding. Bytes that are not a JPEG, or of which jpegtran warns, are returned as
    they are.

    Raises:
        FileNotFoundError: there is no jpegtran on this machine.
    """
    header = _header(data)
    if header is None:
        return data
    most = min(_MOST_SEGMENTS, max(1, _MOST_ENTRIES // header.num_rows))
    num_segments = max(n for n in range(1, most + 1) if header.num_columns % n == 0)
    interval = f"{header.num_columns // num_segments}B"
    command = [JPEGTRAN, "-copy", "none", "-optimize", "-restart", interval]
    result = subprocess.run(command, input=data, capture_output=True, check=False)
    return data if result.returncode else with_index(result.stdout, num_segments) or data


def with_index(data: bytes, num_segments: int) -> bytes | None:
    """A JPEG of one scan with an index of its restart markers, which divide each row of blocks into `num_segments`.

    None if they do not, or if the index would be too large.
    """
    header = _header(data)
    if header is None or header.num_columns % num_segments:
        return None
    length_N = _segment_lengths(data, header.scan_at)
    if len(length_N) != header.num_rows * num_segments or len(length_N) > _MOST_ENTRIES or length_N.max() > 0xFFFF:
        return None
    at = _end_of_first_segment(data)
    segment_width = header.block_width * (header.num_columns // num_segments)
    offsets = header.size_at - at, header.scan_at - at
    layout = _Index(header.num_rows, num_segments, header.block_height, segment_width, *offsets)
    index = _NAME + _LAYOUT.pack(*layout) + length_N.astype(">u2").tobytes()
    return data[:at] + struct.pack(">BBH", 0xFF, _APPLICATION, 2 + len(index)) + index + data[at:]


def _end_of_first_segment(data: bytes) -> int:
    """Where the index is, or belongs: after the segment that must be the first in a JFIF file."""
    return 4 + _number(data, 4)


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def _header(data: bytes) -> _Header | None:
    """The header of a sequential or progressive JPEG, up to its first scan; None for other bytes."""
    if not data.startswith(b"\xff\xd8"):
        return None
    at, marker, frame = 2, 0, 0
    while marker != _START_OF_SCAN:
        if data[at : at + 1] != b"\xff" or at + 4 > len(data):
            return None
        marker = data[at + 1]
        frame = at + 4 if marker in _FRAMES else frame
        at += 2 + _number(data, at + 2)
    factors = [divmod(factor, 16) for factor in data[frame + 7 : frame + 6 + 3 * data[frame + 5] : 3]]
    if not frame or not factors:
        return None
    # A block of the only component has 8 x 8 samples, whatever its factors are.
    across, down = (max(factor) for factor in zip(*factors, strict=True)) if len(factors) > 1 else (1, 1)
    height, width = _number(data, frame + 1), _number(data, frame + 3)
    return _Header(-(-height // (8 * down)), -(-width // (8 * across)), 8 * down, 8 * across, frame + 1, at)


def _segment_lengths(data: bytes, scan_at: int) -> np.ndarray:
    """Bytes (int64 N) of each segment of the first scan, with the marker at its end, up to the end of the image."""
    byte = np.frombuffer(data, np.uint8, offset=scan_at)
    at = np.flatnonzero(byte[:-1] == 0xFF)
    # A zero makes the byte before it an ordinary one.
    end = at[byte[at + 1] != 0] + 2
    return np.diff(end, prepend=0)
