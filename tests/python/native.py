"""Two threads whose native stacks are known: Python calls C (`qsort` of the C library, by ctypes),
which calls Python back, which calls C again (zlib, with and without the GIL). Prints one JSON line:
`pid`.
"""
import ctypes
import json
import os
import sys
import threading
import time
import zlib

PARENT = os.getppid()
END = time.monotonic() + 180
DATA = bytes(range(256)) * 4096
COMPARE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
LIBC = ctypes.CDLL(None)


def compare(left, right):
    # More than 5 KiB: the GIL is released (Modules/zlibmodule.c).
    zlib.adler32(DATA)
    for at in range(0, len(DATA), 1 << 16):
        zlib.adler32(DATA[at:at + 4096])
    return 0


def sort():
    array = (ctypes.c_int * 8)()
    LIBC.qsort(array, 8, 4, COMPARE(compare))


def work():
    while time.monotonic() < END and os.getppid() == PARENT:
        sort()
        # Many of these run at once.
        time.sleep(0.005)


def main():
    thread = threading.Thread(target=work)
    thread.daemon = True
    thread.start()
    print(json.dumps({"pid": os.getpid()}))
    sys.stdout.flush()
    work()


main()
