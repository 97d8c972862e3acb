"""Protobuf's wire format, read without knowing the messages: enough to damage a field and keep the file readable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

_DEPTH = 12


@dataclass
class Field:
    """One field: an integer (wire type 0), bytes (1, 2, 5), or the fields of what may be a message (2)."""

    number: int
    wire: int
    value: int | bytes | list[Field]


Spot: TypeAlias = tuple[list[Field], int]


def parse(data: bytes, depth: int = _DEPTH) -> list[Field] | None:
    """The fields of a message; None if the bytes are none."""
    fields, at = [], 0
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            number, wire = tag >> 3, tag & 7
            if not number or wire not in (0, 1, 2, 5):
                return None
            value: int | bytes | list[Field]
            if wire == 0:
                value, at = _varint(data, at)
            else:
                size, at = _varint(data, at) if wire == 2 else ((8, at) if wire == 1 else (4, at))
                value, at = data[at : at + size], at + size
                if at > len(data):
                    return None
                inner = parse(value, depth - 1) if wire == 2 and depth and value else None
                value = inner if inner and serialise(inner) == value else value
            fields.append(Field(number, wire, value))
    except IndexError:
        return None
    return fields


def serialise(fields: list[Field]) -> bytes:
    """The bytes of a message, lengths made to fit."""
    parts = []
    for field in fields:
        parts.append(_packed(field.number << 3 | field.wire))
        if isinstance(field.value, int):
            parts.append(_packed(field.value))
            continue
        content = serialise(field.value) if isinstance(field.value, list) else field.value
        parts += [_packed(len(content)), content] if field.wire == 2 else [content]
    return b"".join(parts)


def all_fields(fields: list[Field]) -> list[Spot]:
    """Every place where a field stands, at any depth: the list that holds it, and its index there."""
    spots = []
    for index, field in enumerate(fields):
        spots.append((fields, index))
        if isinstance(field.value, list):
            spots += all_fields(field.value)
    return spots


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError("no varint is that long")


def _packed(value: int) -> bytes:
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)
