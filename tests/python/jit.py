"""Calls functions that are hot enough to be compiled, where the interpreter does that. Prints one
JSON line: `pid`; `jit`, whether it does; `stack` as in known_stack.py, of which a sample may lack the
newest frames.
"""
import json
import os
import sys
import time

PARENT = os.getppid()
END = time.monotonic() + 300


def leaf(count):
    total = 0
    for value in range(count):
        total += value * value
    return total


def middle(count):
    return (leaf(count)
            + leaf(count))


def outer():
    while time.monotonic() < END and os.getppid() == PARENT:
        middle(20000)


def lines(function):
    first = function.__code__.co_firstlineno
    return list(range(first, first + 5))


STACK = [("<module>", __file__, list(range(50)))]
STACK += [(function.__name__, __file__, lines(function)) for function in (outer, middle, leaf)]
jit = getattr(sys, "_jit", None)
print(json.dumps({
    "pid": os.getpid(), "jit": jit is not None and jit.is_enabled(), "stack": STACK}))
sys.stdout.flush()
outer()
