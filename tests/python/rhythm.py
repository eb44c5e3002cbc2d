"""Works in a rhythm of exactly 10 ms of wall clock: `first_fifth` has the first 20 % of every
period, `the_rest` what remains. A sampler on a fixed grid of the same period sees only one of them.
Prints one JSON line: `pid`, `shares` (name → percent).
"""
import json
import os
import sys
import time

PARENT = os.getppid()
END = time.monotonic() + 90
PERIOD = 0.010


def first_fifth(until, clock=time.monotonic):
    while clock() < until:
        pass


def the_rest(until, clock=time.monotonic):
    while clock() < until:
        pass


def main():
    print(json.dumps({"pid": os.getpid(), "shares": {"first_fifth": 20, "the_rest": 80}}))
    sys.stdout.flush()
    period = int(time.monotonic() / PERIOD)
    while time.monotonic() < END and os.getppid() == PARENT:
        first_fifth((period + 0.2) * PERIOD)
        the_rest((period + 1) * PERIOD)
        period = int(time.monotonic() / PERIOD + 1e-6)


main()
