"""Position tables: closed forms, and other grids."""

import math

import pytest
import torch

from vitscale.models.position import resample, sincos


def test_sincos_equals_its_definition_entry_by_entry():
    height, width, dim = 3, 5, 16
    table = sincos((height, width), dim)
    assert table.shape == (1, height * width, dim)
    assert table.dtype == torch.float32
    for row in range(height):
        for column in range(width):
            for i in range(4):
                rate = 10_000 ** (-i / 4)
                expected = [math.sin(column * rate), math.cos(column * rate), math.sin(row * rate), math.cos(row * rate)]
                assert table[0, row * width + column, [i, 4 + i, 8 + i, 12 + i]].tolist() == pytest.approx(expected, abs=1e-7)


def test_sincos_wants_a_width_divisible_by_four():
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        sincos((2, 2), 6)


@pytest.mark.parametrize("rows", [0, 1])
def test_the_same_grid_is_left_alone_and_the_token_rows_always(rows):
    table = torch.randn(1, rows + 12, 8)
    assert resample(table, (3, 4), (3, 4)) is table
    other = resample(table, (3, 4), (5, 2))
    assert other.shape == (1, rows + 10, 8)
    assert torch.equal(other[:, :rows], table[:, :rows])


def cubic(distance: float, a: float = -0.75) -> float:
    """The cubic convolution kernel of Keys 1981, equation 4, with torch's a."""
    t = abs(distance)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def weights(old: int, new: int) -> torch.Tensor:
    """(new, old): how much of each old row a new row takes; pixel centres at half, edges repeated."""
    matrix = torch.zeros(new, old)
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        for neighbour in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[row, min(max(neighbour, 0), old - 1)] += cubic(centre - neighbour)
    return matrix


@pytest.mark.parametrize("new", [(6, 3), (3, 9), (8, 10)])
def test_another_grid_takes_rows_and_columns_by_the_cubic_kernel(new):
    table = torch.randn(1, 1 + 4 * 5, 8)
    expected = torch.einsum("ih,jw,hwd->ijd", weights(4, new[0]), weights(5, new[1]), table[0, 1:].reshape(4, 5, 8))
    torch.testing.assert_close(resample(table, (4, 5), new)[0, 1:], expected.flatten(0, 1), rtol=1e-4, atol=1e-5)


def test_bf16_tables_are_resampled_in_fp32():
    table = torch.randn(1, 17, 8).bfloat16()
    other = resample(table, (4, 4), (6, 6))
    assert other.dtype == torch.bfloat16
    torch.testing.assert_close(other, resample(table.float(), (4, 4), (6, 6)).bfloat16(), rtol=0, atol=0)
