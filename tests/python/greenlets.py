"""Spins in a greenlet, whose stack begins anew: with a function, or with a generator when the first
argument is `generator`; with `gevent` in one of gevent's, after others of them that have switched.
Prints one JSON line: `pid`, `stack` as in known_stack.py. Needs greenlet or gevent.
"""
import json
import os
import sys
import time

import greenlet

PARENT = os.getppid()
END = time.monotonic() + 300


def spin():
    frame = sys._getframe()
    first = frame.f_code.co_firstlineno
    stack = [("spin", frame.f_code.co_filename, list(range(first + 11, first + 14)))]
    while frame.f_back is not None:
        frame = frame.f_back
        stack.append((frame.f_code.co_name, frame.f_code.co_filename, [frame.f_lineno]))
    stack.reverse()
    frame = None
    print(json.dumps({"pid": os.getpid(), "stack": stack}))
    sys.stdout.flush()
    while time.monotonic() < END and os.getppid() == PARENT:
        for _ in range(20000):
            pass


def generated():
    spin()
    yield


def called():
    spin()


def start():
    if sys.argv[1:] == ["generator"]:
        greenlet.greenlet(list).switch(generated())
    elif sys.argv[1:] == ["gevent"]:
        import gevent
        others = [gevent.spawn(gevent.sleep, 0.01 * number) for number in range(9)]
        gevent.joinall(others + [gevent.spawn_later(0.05, called)])
    else:
        greenlet.greenlet(called).switch()


start()
