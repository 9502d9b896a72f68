# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Amounts with a unit."""

import pytest

from mmaselect.terminal.amounts import bytes_in_words, flops_in_words


@pytest.mark.parametrize(
    ('number', 'text'),
    [(0, '0 B'), (1000, '1000 B'), (1024, '1 KiB'), (1_047_552, '1023 KiB'), (2**20 - 1, '1 MiB'),
     (23_803_000_000, '22.2 GiB'), (5 * 2**50, '5.12e+03 TiB')],
)  # fmt: skip
def test_bytes(number, text):
    assert bytes_in_words(number) == text


def test_flops():
    assert [flops_in_words(n) for n in (7, 2_140_000, 999_499, 999_500, 21_502_159_749_120)] == [
        '7 FLOP', '2.14 MFLOP', '999 kFLOP', '1 MFLOP', '21.5 TFLOP',
    ]  # fmt: skip
