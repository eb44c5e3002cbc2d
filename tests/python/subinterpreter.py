"""Spins in a subinterpreter. Prints one JSON line: `pid`, `stack` as in known_stack.py. Needs CPython
3.8 or later.
"""
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

CODE = """\
import json, os, sys, time

PARENT = os.getppid()
END = time.monotonic() + 300

def spin():
    frame = sys._getframe()
    first = frame.f_code.co_firstlineno
    stack = [("spin", frame.f_code.co_filename, list(range(first + 10, first + 13)))]
    while frame.f_back is not None:
        frame = frame.f_back
        stack.append((frame.f_code.co_name, frame.f_code.co_filename, [frame.f_lineno]))
    stack.reverse()
    print(json.dumps({"pid": os.getpid(), "stack": stack}))
    sys.stdout.flush()
    while time.monotonic() < END and os.getppid() == PARENT:
        for _ in range(20000):
            pass

def inside():
    spin()

inside()
"""


def outside():
    interpreters.run_string(interpreters.create(), CODE)


outside()
