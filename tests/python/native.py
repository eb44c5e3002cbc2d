"""Two threads whose native stacks are known: Python calls C, which calls Python back, which calls C
again, with the GIL and, where there is more to do, without it. Prints one JSON line: `pid`; `calls`,
each as function, the function that C calls back, and the libraries between them, newest last; and
`leaves`, each as function and the library that it works in.
"""
import ctypes
import hashlib
import json
import os
import sys
import threading
import time
import zlib

try:
    import sqlite3
except ImportError:
    sqlite3 = None

PARENT = os.getppid()
END = time.time() + 180
DATA = bytes(bytearray(range(256))) * 256
COMPARE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
LIBC = ctypes.CDLL(None)


def checksum():
    # More than 5 KiB: the GIL is released (Modules/zlibmodule.c).
    zlib.adler32(DATA)
    for at in range(0, len(DATA), 1 << 14):
        zlib.adler32(DATA[at:at + 4096])


def digest():
    # More than 2047 bytes: the GIL is released (Modules/hashlib.h).
    hashlib.sha256(DATA).digest()
    for at in range(0, len(DATA), 1 << 14):
        hashlib.sha256(DATA[at:at + 2000]).digest()


def compare(left, right):
    checksum()
    return 0


def sort():
    array = (ctypes.c_int * 4)()
    LIBC.qsort(array, 4, 4, COMPARE(compare))


def default(value):
    digest()
    return 0


def encode():
    json.dumps([object(), object()], default=default)


def callback(value):
    checksum()
    return value


def query(connection):
    connection.execute("select f(1), f(2), f(3), f(4), f(5), f(6)").fetchall()


def numbers():
    for value in range(6):
        checksum()
        yield value


def sums():
    # A generator is resumed by C.
    sum(numbers())


def work():
    if sqlite3:
        connection = sqlite3.connect(":memory:")
        connection.create_function("f", 1, callback)
    while time.time() < END and os.getppid() == PARENT:
        sort()
        encode()
        if sqlite3:
            query(connection)
        sums()
        # Many of these run at once, and who records them has to find names meanwhile.
        time.sleep(0.03)


def library(module, name):
    """What code of the module is in: nothing to see where the interpreter has it built in."""
    return [] if module in sys.builtin_module_names else [name]


def main():
    thread = threading.Thread(target=work)
    thread.daemon = True
    thread.start()
    calls = [
        ["sort", "compare", ["_ctypes", "libc.", "_ctypes"]],
        ["iterencode", "default", library("_json", "_json")],
        ["sums", "numbers", []],
    ]
    if sqlite3:
        calls.append(["query", "callback", library("_sqlite3", "_sqlite3") + ["libsqlite3"]])
    leaves = [["checksum", "libz."]]
    if "_hashlib" in sys.modules:
        leaves.append(["digest", "libcrypto"])
    print(json.dumps({"pid": os.getpid(), "calls": calls, "leaves": leaves}))
    sys.stdout.flush()
    work()


main()
