"""A stack of 900 functions, each with a code object of its own whose line table is huge (200 000
bytes), walked again and again, under new code objects each time. Needs CPython 3.10.
Prints one JSON line: `pid`.
"""
import json
import os
import sys
import time

PARENT = os.getppid()
START = time.monotonic()
TABLE = bytes(200000)
COUNT = 900


def step(functions, index):
    if index < len(functions):
        return functions[index](functions, index + 1)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        pass


def made(number):
    code = step.__code__.replace(co_name="step_%d" % number, co_linetable=TABLE)
    return type(step)(code, globals())


def main():
    sys.setrecursionlimit(10000)
    turn = 0
    while time.monotonic() < START + 60 and os.getppid() == PARENT:
        functions = [made(turn * COUNT + number) for number in range(COUNT)]
        functions[0](functions, 1)
        turn += 1


print(json.dumps({"pid": os.getpid()}))
sys.stdout.flush()
main()
