"""A Python that forks children which never exec. The first argument says which:

- `server COUNT`: COUNT children at a time, each of which makes a function of its own, at whatever
  address, and works in it for a second;
- `storm`: children that end at once, as fast as they come;
- `scripts COUNT PYTHON`: COUNT scripts one after another, each of which works for 60 ms in a
  function of its own.

Prints a JSON line: `pid`. `server` goes on until a minute has passed or its parent is gone; the
others say in a second line how many children they had: `storm` at SIGTERM, `scripts` at their end.
"""
import json
import os
import signal
import subprocess
import sys
import time

PARENT = os.getppid()
START = time.monotonic()
SOURCE = """
def child_%d():
    end = time.monotonic() + %f
    while time.monotonic() < end:
        for _ in range(10000):
            pass
child_%d()
"""


def alive():
    return time.monotonic() < START + 60 and os.getppid() == PARENT


def say(**facts):
    print(json.dumps(facts))
    sys.stdout.flush()


def server(count):
    for _ in range(count):
        os.fork() or child()
    while alive():
        os.wait()
        os.fork() or child()


def child():
    pid = os.getpid()
    exec(SOURCE % (pid, 1, pid))
    os._exit(0)


def storm():
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    count = 0
    while alive() and not ended:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        count += 1
    say(children=count)


def scripts(count, python):
    for number in range(count):
        source = "import time" + SOURCE % (number, 0.06, number)
        subprocess.Popen([python, "-S", "-c", source]).wait()
    say(children=count)


def main(mode, *rest):
    say(pid=os.getpid())
    if mode == "server":
        server(int(rest[0]))
    elif mode == "storm":
        storm()
    elif mode == "scripts":
        scripts(int(rest[0]), rest[1])
    else:
        sys.exit("unknown mode " + mode)


main(*sys.argv[1:])
