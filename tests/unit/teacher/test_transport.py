"""What comes out of a message is what went in, as near as its format allows."""

import pytest
import torch

from ekd_nemo.config.recipe import Precision
from ekd_nemo.teacher.transport import decode, encode, encoded_bytes


def through(values: torch.Tensor, transport: Precision) -> torch.Tensor:
    message = encode(values, transport)
    assert message.dtype == torch.uint8
    assert message.numel() == encoded_bytes(values.shape, transport)
    return decode(message, values.shape, transport, values.dtype)


def test_fp32_is_exact() -> None:
    values = torch.randn(5, 2, 33)
    assert torch.equal(through(values, "fp32"), values)


def test_bf16_is_exact_for_bf16() -> None:
    values = torch.randn(5, 2, 33, dtype=torch.bfloat16)
    assert torch.equal(through(values, "bf16"), values)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e4, 1e30])
def test_fp8_keeps_three_bits_of_each_element(scale: float) -> None:
    """E4M3: relative error up to 2^-4 above its smallest normal number, 2^-6; below, 2^-10 of 448ths."""
    values = torch.randn(7, 3, 65) * scale
    values[0, 0, 0] = 300 * scale  # an outlier of one row is not the next row's trouble
    error = (through(values, "fp8") - values).abs()
    largest = values.abs().amax(-1, keepdim=True)
    assert bool((error <= values.abs() * 2**-4 + largest / 448 * 2**-10 * 1.01).all())


def test_fp8_of_zeros_is_zero() -> None:
    assert not through(torch.zeros(2, 1, 8), "fp8").any()


def test_a_width_that_is_no_multiple_of_four_is_no_trouble() -> None:
    values = torch.randn(3, 1, 5)
    torch.testing.assert_close(through(values, "fp8"), values, rtol=0.07, atol=0.01)
