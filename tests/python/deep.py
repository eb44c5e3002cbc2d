"""Spins under a recursion as deep as the first argument says. Prints one JSON line: `pid`,
`stack` as in known_stack.py, newest 1100 frames only.
"""
import json
import os
import sys
import time

DEPTH = int(sys.argv[1])
clock = getattr(time, "monotonic", time.time)
PARENT = os.getppid()
END = clock() + 180


def spin():
    frame = sys._getframe()
    first = frame.f_code.co_firstlineno
    stack = [("spin", frame.f_code.co_filename, list(range(first + 11, first + 14)))]
    while frame.f_back is not None:
        frame = frame.f_back
        stack.append((frame.f_code.co_name, frame.f_code.co_filename, [frame.f_lineno]))
    stack.reverse()
    frame = None
    print(json.dumps({"pid": os.getpid(), "depth": len(stack), "stack": stack[-1100:]}))
    sys.stdout.flush()
    while clock() < END and os.getppid() == PARENT:
        for _ in range(20000):
            pass


def even(depth):
    if depth == 0:
        spin()
    else:
        odd(depth - 1)


def odd(depth):
    if depth == 0:
        spin()
    else:
        even(depth - 1)


sys.setrecursionlimit(DEPTH + 200)
even(DEPTH - 3)
