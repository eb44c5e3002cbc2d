"""Works in a subinterpreter. Prints one JSON line: `pid`, `stack` as in known_stack.py. Needs CPython
3.8 or later. The argument says how:

- `spin`: runs Python code;
- `inside`: runs C code that has released the GIL;
- `idle`: the same, outside of a subinterpreter that is there and does nothing.
"""
import sys

try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

CODE = """\
import json, os, sys, time, zlib

PARENT = os.getppid()
DATA = bytes(range(256)) * 40000

def say(lines):
    frame = sys._getframe(1)
    first = frame.f_code.co_firstlineno
    stack = [(frame.f_code.co_name, frame.f_code.co_filename, [first + line for line in lines])]
    while frame.f_back is not None:
        frame = frame.f_back
        stack.append((frame.f_code.co_name, frame.f_code.co_filename, [frame.f_lineno]))
    stack.reverse()
    print(json.dumps({"pid": os.getpid(), "stack": stack}))
    sys.stdout.flush()

def spin():
    say(range(2, 5))
    while os.getppid() == PARENT:
        for _ in range(2000000):
            pass

def compress():
    say(range(2, 4))
    while os.getppid() == PARENT:
        zlib.compress(DATA, 9)

def inside():
    WORK()

inside()
"""


def outside(mode):
    made = interpreters.create()
    code = CODE.replace("WORK", "spin" if mode == "spin" else "compress")
    if mode == "idle":
        exec(compile(code, "<string>", "exec"), {"__name__": "here"})
    else:
        interpreters.run_string(made, code)


outside(sys.argv[1])
