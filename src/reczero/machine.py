"""What this machine's processor can do, and settings of this process that make torch on it faster."""

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's mallopt(3)


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed, and not to map large blocks one by one; whether it did.

    Otherwise every large tensor is fetched from the system anew and filled with zeros by page faults, which took a
    third of an update's time where it was measured (docs/log.md). The process then holds its peak memory until it
    ends. Does nothing on other C libraries, or where the environment sets one of these two already.
    """
    own = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "LD_PRELOAD"} & os.environ.keys()
    if own or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products in bfloat16 (AVX-512 BF16, AMX, or ARM's)."""
    import torch

    return any(there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name)
