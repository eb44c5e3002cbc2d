"""Runs C code that has released the GIL, in a subinterpreter. Prints one JSON line: `pid`, `stack` as
in known_stack.py. With `idle`, another subinterpreter is there and the C code is called outside of it.
Needs CPython 3.8 or later.
"""
import sys

try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

CODE = """\
import json, os, sys, time, zlib

PARENT = os.getppid()
END = time.monotonic() + 300
DATA = bytes(range(256)) * 40000

def compress():
    frame = sys._getframe()
    first = frame.f_code.co_firstlineno
    stack = [("compress", frame.f_code.co_filename, list(range(first + 10, first + 12)))]
    while frame.f_back is not None:
        frame = frame.f_back
        stack.append((frame.f_code.co_name, frame.f_code.co_filename, [frame.f_lineno]))
    stack.reverse()
    print(json.dumps({"pid": os.getpid(), "stack": stack}))
    sys.stdout.flush()
    while time.monotonic() < END and os.getppid() == PARENT:
        zlib.compress(DATA, 9)

def inside():
    compress()

inside()
"""


def outside():
    made = interpreters.create()
    if "idle" in sys.argv:
        exec(compile(CODE, "<string>", "exec"), {"__name__": "here"})
    else:
        interpreters.run_string(made, CODE)


outside()
