"""A process that replaces its program again and again: each life works for a moment under functions of
its own kind, then becomes the next. Arguments: the number of this life, and the interpreters, which
take turns. The first life prints one JSON line: `pid`, and `lines` of the functions.
"""
import json
import os
import sys
import time

PARENT = os.getppid()
START = time.monotonic()
NUMBER = int(sys.argv[1])


def work():
    while time.monotonic() < START + 0.06:
        for _ in range(2000):
            pass


def even_inner():
    work()


def even_life():
    even_inner()


def odd_inner():
    work()


def odd_life():
    odd_inner()


if NUMBER == 0:
    functions = [work, even_inner, even_life, odd_inner, odd_life]
    lines = {f.__name__: f.__code__.co_firstlineno for f in functions}
    print(json.dumps({"pid": os.getpid(), "lines": lines}))
    sys.stdout.flush()
(even_life if NUMBER % 2 == 0 else odd_life)()
if os.getppid() == PARENT and NUMBER < 400:
    program = sys.argv[2 + (NUMBER + 1) % (len(sys.argv) - 2)]
    os.execv(program, [program, "-B", __file__, str(NUMBER + 1)] + sys.argv[2:])
