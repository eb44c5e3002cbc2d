"""Calls code that it has made itself, which calls Python back: code that keeps a frame pointer, and
code that keeps none and moves the stack pointer by one word, some or many. Prints one JSON
line: `pid`; `calls`, each as function, the function that is called back, and whether its caller can be
found.
"""
import ctypes
import json
import mmap
import os
import time
import zlib

PARENT = os.getppid()
END = time.time() + 180
DATA = bytes(bytearray(range(256))) * 256
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int)
def words(count):
    """Clears so much of the stack, where old return addresses may lie: mov %rdi, %rdx; mov %rsp, %rdi;
    mov count, %ecx; xor %eax, %eax; rep stosq.
    """
    return b"\x48\x89\xfa\x48\x89\xe7\xb9%c\0\0\0\x31\xc0\xf3\x48\xab" % count


# Each calls its argument, and does something (nop) before it returns.
CALL = b"\xff\xd2\x90\x31\xc0"
FRAMED = b"\x55\x48\x89\xe5\x48\x83\xec\x20" + words(4) + CALL + b"\xc9\xc3"
ONE = b"\x48\x83\xec\x08" + words(1) + CALL + b"\x48\x83\xc4\x08\xc3"
SOME = b"\x48\x83\xec\x48" + words(9) + CALL + b"\x48\x83\xc4\x48\xc3"
MANY = b"\x48\x81\xec\x48\1\0\0" + words(41) + CALL + b"\x48\x81\xc4\x48\1\0\0\xc3"
CODE = mmap.mmap(
    -1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
    prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


def function(code):
    at = CODE.tell()
    CODE.write(code.ljust(64, b"\xcc"))
    address = ctypes.addressof(ctypes.c_char.from_buffer(CODE)) + at
    return ctypes.CFUNCTYPE(ctypes.c_int, CALLBACK)(address)


framed, one, some, many = map(function, [FRAMED, ONE, SOME, MANY])


def by_framed():
    zlib.adler32(DATA)
    return 0


def by_one():
    zlib.adler32(DATA)
    return 0


def by_some():
    zlib.adler32(DATA)
    return 0


def by_many():
    zlib.adler32(DATA)
    return 0


def call_framed(callback=CALLBACK(by_framed)):
    framed(callback)


def call_one(callback=CALLBACK(by_one)):
    one(callback)


def call_some(callback=CALLBACK(by_some)):
    some(callback)


def call_many(callback=CALLBACK(by_many)):
    many(callback)


def main():
    calls = [
        ["call_framed", "by_framed", True],
        ["call_one", "by_one", True],
        ["call_some", "by_some", True],
        ["call_many", "by_many", False],
    ]
    print(json.dumps({"pid": os.getpid(), "calls": calls}), flush=True)
    while time.time() < END and os.getppid() == PARENT:
        for _ in range(100):
            call_framed()
            call_one()
            call_some()
            call_many()
        time.sleep(0.01)


main()
