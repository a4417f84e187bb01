"""Advice to the kernel on how tensors that are mapped from files will be read."""

import ctypes
import mmap

import torch


def pages_around(tensor: torch.Tensor) -> tuple[int, int]:
    """Addresses of the pages that hold any of a tensor's bytes: the first one's start, the last byte's end."""
    start = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    return start, tensor.data_ptr() + tensor.nbytes


def pages_within(tensor: torch.Tensor) -> tuple[int, int]:
    """Addresses of the pages that hold nothing but a tensor's bytes: start and end; none where end <= start."""
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    return start, end


def advise(pages: tuple[int, int], advice: str) -> None:
    """Tell the kernel how the pages between two addresses will be used; it may do as it likes.

    Args:
        advice: a name of madvise(2), such as `MADV_WILLNEED`; without effect on systems that do not know it.
    """
    start, end = pages
    number = getattr(mmap, advice, None)
    if number is not None and start < end:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), number)
