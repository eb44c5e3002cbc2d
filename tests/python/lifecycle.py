"""Processes that come, go and change. The first argument says which:

- `exits SECONDS`: works, then exits with status 3;
- `execs PYTHON`: works for two seconds, then becomes `PYTHON lifecycle.py after_exec`;
- `spawns`: works, and starts a child that works too, by fork and exec, and two seconds later
  another;
- `forks`: likewise by fork alone;
- `works`: works until the parent is gone or a minute has passed.

Prints one JSON line: `pid`, and `child` where there is one.
"""
import json
import os
import subprocess
import sys
import time

PARENT = os.getppid()
START = time.monotonic()


def work(seconds):
    while time.monotonic() < START + seconds and os.getppid() == PARENT:
        for _ in range(20000):
            pass


def before_exec():
    work(2)


def after_exec():
    work(60)


def in_parent(seconds=60):
    work(seconds)


def in_late_child():
    work(60)


def in_child():
    work(60)


def say(**facts):
    print(json.dumps(dict(facts, pid=os.getpid())))
    sys.stdout.flush()


def forked(function):
    global PARENT
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        PARENT = parent
        function()
        os._exit(0)
    return child


def main(mode, *rest):
    if mode == "exits":
        say()
        work(float(rest[0]))
        sys.exit(3)
    elif mode == "execs":
        say()
        before_exec()
        os.execv(rest[0], [rest[0], "-B", __file__, "after_exec"])
    elif mode == "after_exec":
        after_exec()
    elif mode == "spawns":
        child = subprocess.Popen([sys.executable, "-B", __file__, "child"])
        say(child=child.pid)
        in_parent(2)
        late = subprocess.Popen([sys.executable, "-B", __file__, "late"])
        in_parent()
        late.wait()
    elif mode == "forks":
        say(child=forked(in_child))
        in_parent(2)
        forked(in_late_child)
        in_parent()
    elif mode == "child":
        in_child()
    elif mode == "late":
        in_late_child()
    elif mode == "works":
        say()
        in_parent()
    else:
        sys.exit("unknown mode " + mode)


main(*sys.argv[1:])
