"""Several threads: one that runs Python, one inside a C call that has released the GIL, and three
that are blocked. Prints one JSON line: `pid` and `threads`, name → native id.
"""
import ctypes
import json
import os
import socket
import sys
import threading
import time
import zlib

PARENT = os.getppid()
END = time.monotonic() + 180
LOCK = threading.Lock()
NEAR, FAR = socket.socketpair()
IDS = {}


def running():
    return time.monotonic() < END and os.getppid() == PARENT


def spins_in_python():
    while running():
        for _ in range(20000):
            pass


def sums_without_gil():
    data = bytes(32 << 20)
    while running():
        zlib.crc32(data)


def waits_for_lock():
    with LOCK:
        pass


def sleeps():
    time.sleep(600)


def reads_socket():
    NEAR.recv(1)


def begin(function):
    libc = ctypes.CDLL(None)
    IDS[function.__name__] = libc.syscall(186)  # gettid on x86-64
    function()


def main():
    functions = [spins_in_python, sums_without_gil, waits_for_lock, sleeps, reads_socket]
    LOCK.acquire()
    threads = []
    for function in functions:
        thread = threading.Thread(target=begin, args=(function,), name=function.__name__)
        thread.daemon = True
        thread.start()
        threads.append(thread)
    while len(IDS) < len(functions):
        time.sleep(0.01)
    time.sleep(0.3)
    print(json.dumps({"pid": os.getpid(), "threads": IDS}))
    sys.stdout.flush()
    threads[0].join()
    os._exit(0)


main()
