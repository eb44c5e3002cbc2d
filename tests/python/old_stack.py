# coding: utf-8
"""Spins under a known stack in Python 2: one thread in Python code, one in C without the GIL.

Prints one JSON line: `pid`, and `stacks`, of the main thread and of the other one, from root to leaf
as the interpreter itself tells them: name, file, lines. All lines but the main leaf's are single.
"""
import json
import os
import sys
import threading
import time
import zlib

PARENT = os.getppid()
END = time.time() + 180
STACKS = {}


def tell(name, frame, lines):
    stack = []
    while frame is not None:
        lines = lines or [frame.f_lineno]
        stack.append((frame.f_code.co_name, frame.f_code.co_filename, lines))
        frame, lines = frame.f_back, None
    STACKS[name] = stack[::-1]


def spin():
    first = sys._getframe().f_code.co_firstlineno
    tell("main", sys._getframe(), list(range(first + 8, first + 12)))
    while "other" not in STACKS:
        time.sleep(0.01)
    print(json.dumps({"pid": os.getpid(), "stacks": [STACKS["main"], STACKS["other"]]}))
    sys.stdout.flush()
    now, getppid = time.time, os.getppid
    while True:
        for _ in range(20000):
            pass
        if now() > END or getppid() != PARENT: os._exit(0)


def compress(data):
    pack, frame = zlib.compress, sys._getframe()
    while True: tell("other", frame, None) if "other" not in STACKS else pack(data, 9)


class Classic:
    def method(self):
        return [value for value in self.generator()]

    def generator(self):
        yield (lambda: spin())()


class New(object):
    @property
    def attribute(self):
        with open(os.devnull):
            return sorted([2, 1], key=lambda _: Classic().method())


def recurse(depth):
    return recurse(depth - 1) if depth else New().attribute


other = threading.Thread(target=compress, args=(b"some text" * 4000000,), name="gr\xc3\xb6\xc3\x9fe")
other.daemon = True
other.start()


recurse(20)
