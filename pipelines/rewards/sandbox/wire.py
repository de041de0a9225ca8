"""The protocol between the checker and the generated program: JSON frames over two pipes.

Frames carry only data: None, bool, int, float, str, and tagged bytes, complex, list, tuple, set,
frozenset, dict and the names of builtin types. Subclasses (Counter, namedtuple, IntEnum) are sent
as their plain content. Reading a frame thus builds plain values and runs no code of the sender. Any
other object stays in its process and is sent as a tagged number.
"""

from __future__ import annotations

import builtins
import json
import os
import struct
from collections.abc import Callable
from typing import Any

MAX_FRAME_BYTES = 16 * 2**20
_LENGTH = struct.Struct("<I")
# For larger integers, conversion to decimal is slow, and Python refuses it above a limit.
_LARGE_INT = 2**256
_SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_TYPES = {
    name: found
    for name, found in vars(builtins).items()
    if isinstance(found, type) and not name.startswith("_")
}

Objects = Callable[[Any], Any]


class WireError(Exception):
    """The other side sent an invalid message, or has disconnected."""


def encode(value: Any, reference: Objects) -> Any:
    """Encode a value for JSON; `reference` gives the tagged form of an object that is not data."""
    if value is None or isinstance(value, (bool, float, str)):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < _LARGE_INT else ["int", hex(value)]
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes" if isinstance(value, bytes) else "bytearray", value.hex()]
    if isinstance(value, dict):
        pairs = dict.items(value)
        return ["dict", [[encode(k, reference), encode(v, reference)] for k, v in pairs]]
    for tag, base in _SEQUENCES.items():
        if isinstance(value, base):
            return [tag, [encode(item, reference) for item in base.__iter__(value)]]
    if isinstance(value, type) and _TYPES.get(value.__name__) is value:
        return ["type", value.__name__]
    return reference(value)


def decode(given: Any, resolve: Objects) -> Any:
    """Decode an encoded value; `resolve` takes the tagged form of an object that is not data.

    A WireError says that `encode` cannot have produced it.
    """
    if not isinstance(given, list):
        return given
    try:
        tag, content = given
        if tag in _SEQUENCES:
            return _SEQUENCES[tag]([decode(item, resolve) for item in content])
        if tag == "dict":
            return {decode(k, resolve): decode(v, resolve) for k, v in content}
        if tag == "int":
            return int(content, 16)
        if tag == "bytes":
            return bytes.fromhex(content)
        if tag == "bytearray":
            return bytearray.fromhex(content)
        if tag == "complex":
            return complex(*content)
        if tag == "type":
            return _TYPES[content]
    except (TypeError, ValueError, KeyError) as error:
        raise WireError(f"no value: {error}") from error
    return resolve(given)


def frame(message: Any) -> bytes:
    """Encode one message as bytes; WireError if it is too long."""
    body = json.dumps(message).encode()
    if len(body) > MAX_FRAME_BYTES:
        raise WireError(f"a value of {len(body)} bytes; at most {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


def send(descriptor: int, message: Any) -> None:
    """Write one frame; WireError if it is too long or the reader has disconnected."""
    left = memoryview(frame(message))
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError as error:
        raise WireError("the other side has gone") from error


def receive(descriptor: int) -> Any:
    """Read one frame; WireError if the pipe has ended, or the frame is too long or not JSON."""
    (length,) = _LENGTH.unpack(_read(descriptor, _LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise WireError(f"a frame of {length} bytes; at most {MAX_FRAME_BYTES}")
    try:
        return json.loads(_read(descriptor, length))
    except (ValueError, RecursionError) as error:
        raise WireError("no JSON") from error


def _read(descriptor: int, length: int) -> bytes:
    chunks = bytearray()
    while len(chunks) < length:
        chunk = os.read(descriptor, length - len(chunks))
        if not chunk:
            raise WireError("the other side has gone")
        chunks += chunk
    return bytes(chunks)
