"""How this process keeps memory: a setting of the C library, which changes no result."""

import ctypes
import sys

#: Parameters of mallopt, from glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1
LARGEST_BLOCK = 2**30


def give_back_memory() -> None:
    """Give what is free back to the system, once, so that what is in use can be measured."""
    if sys.platform.startswith("linux") and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def keep_freed_memory() -> bool:
    """Let freed blocks stay with the process, up to 1 GiB each, instead of going back to the system; whether it did.

    A network's feature maps are large blocks that live for one layer. As it comes, glibc asks the system for each of
    them, which clears every page anew: a quarter of the time of a prediction, and much of a training step's.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # musl has none; other allocators that are loaded before it don't care.
    return mallopt is not None and bool(mallopt(MMAP_THRESHOLD, LARGEST_BLOCK) and mallopt(TRIM_THRESHOLD, LARGEST))
