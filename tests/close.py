"""How near two computations of the same numbers must be: as near as rounding lets them, wherever they run.

Processors and thread counts add up in different orders, so that the last bits differ. Where the arithmetic is the
same in the same order, tests ask for equality instead.
"""

import math

import torch


def assert_close(found: torch.Tensor, expected: torch.Tensor, roundings: int) -> None:
    """Equal up to rounding on the way.

    Args:
        roundings: how many a number goes through, one after another, from where the two ways part. An operation
            on single numbers is one; a sum of K numbers is about K / 8, as kernels add up in 4 to 16 lanes.
    """
    assert found.dtype == expected.dtype
    bound = rounding_bound(expected, roundings)
    torch.testing.assert_close(found, expected, atol=bound, rtol=0)


def rounding_bound(expected: torch.Tensor, roundings: int) -> float:
    """The largest difference that so many roundings leave between two ways to compute `expected`.

    A rounding changes a number by up to eps / 2 of it, evenly spread, which is 0.29 eps of the largest number at
    most, as standard deviation. They go both ways, so that n of them add up to sqrt(n) of it, and two ways differ
    by sqrt(2) of that: 0.41 sqrt(n) eps. Among thousands of numbers the largest lies 4 to 5 deviations out,
    which is 2 sqrt(n) eps.
    """
    largest = expected.abs().max().item()
    return 2 * math.sqrt(roundings) * torch.finfo(expected.dtype).eps * largest


def assert_differs(found: torch.Tensor, other: torch.Tensor, roundings: int) -> None:
    """Somewhere, ten times further apart than rounding would bring two ways to compute the same."""
    assert (found - other).abs().max().item() > 10 * rounding_bound(other, roundings)
