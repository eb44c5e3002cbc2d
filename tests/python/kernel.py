"""A thread that is in the kernel, where `read` of /dev/zero clears memory, and then in user space, in
turn. Prints one JSON line: `pid`.
"""
import io
import json
import os
import sys
import time

PARENT = os.getppid()
END = time.time() + 180
ROOM = bytearray(1 << 20)
ZEROS = io.open("/dev/zero", "rb", buffering=0)


def read_zeros():
    for _ in range(40):
        ZEROS.readinto(ROOM)


def count():
    total = 0
    for number in range(20000):
        total += number


def main():
    print(json.dumps({"pid": os.getpid()}))
    sys.stdout.flush()
    while time.time() < END and os.getppid() == PARENT:
        read_zeros()
        count()


main()
