"""What BCC has made and the tests remember: the same bytecode, on other descriptors."""

from __future__ import annotations

import struct

from tests.compiled_bcc import moved

WIDE = 0x18
MAP_FD = 1 << 4


def instruction(operation: int, registers: int, immediate: int) -> bytes:
    return struct.pack("=BBhi", operation, registers, 0, immediate)


def test_a_map_is_found_by_its_new_descriptor() -> None:
    code = instruction(WIDE, MAP_FD | 2, 5) + instruction(0, 0, 0)
    assert moved(code, {5: 31}) == instruction(WIDE, MAP_FD | 2, 31) + instruction(0, 0, 0)


def test_numbers_that_are_no_descriptors_stay() -> None:
    plain = instruction(WIDE, 2, 5) + instruction(0, 0, 5) + instruction(0xB7, 0, 5)
    second_half = instruction(WIDE, 1, 5) + instruction(WIDE, MAP_FD, 5)
    assert moved(plain + second_half, {5: 31}) == plain + second_half
