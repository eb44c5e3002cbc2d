"""Works in a rhythm of exactly 10 ms of wall clock: `first_fifth` has the first 20 % of every
period, `the_rest` what remains. A sampler on a fixed grid of the same period sees only one of them.
Prints one JSON line: `pid`. On SIGTERM it prints another and ends: `shares` (name → percent) of the
CPU time that the two really got, which on a busy machine is not exactly 20 and 80.
"""
import json
import os
import signal
import sys
import time

PARENT = os.getppid()
END = time.monotonic() + 90
PERIOD = 0.010
SPENT = {"first_fifth": 0.0, "the_rest": 0.0}


def first_fifth(until, clock=time.monotonic):
    while clock() < until:
        pass


def the_rest(until, clock=time.monotonic):
    while clock() < until:
        pass


def tell(*_):
    total = sum(SPENT.values())
    print(json.dumps({"shares": {name: 100 * time / total for name, time in SPENT.items()}}))
    sys.stdout.flush()
    os._exit(0)


def main():
    signal.signal(signal.SIGTERM, tell)
    print(json.dumps({"pid": os.getpid()}))
    sys.stdout.flush()
    cpu = time.process_time
    period = int(time.monotonic() / PERIOD)
    while time.monotonic() < END and os.getppid() == PARENT:
        start = cpu()
        first_fifth((period + 0.2) * PERIOD)
        middle = cpu()
        the_rest((period + 1) * PERIOD)
        SPENT["first_fifth"] += middle - start
        SPENT["the_rest"] += cpu() - middle
        period = int(time.monotonic() / PERIOD + 1e-6)


main()
