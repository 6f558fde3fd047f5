"""Free memory of the process, returned to the operating system."""

import ctypes


def return_free_memory() -> None:
    """Return the pages of glibc's heap that contain nothing; takes milliseconds.

    After large responses, the heap would stay as large as it was at its maximum. Has no effect with
    another C library.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
