"""Spends its CPU time over three functions at 70, 20 and 10 %, in small slices measured by the
process's own CPU clock. Prints one JSON line: `pid`, `shares` (name → percent).
"""
import json
import os
import sys
import time

PARENT = os.getppid()
END = time.monotonic() + 90


def seventy(until, clock=time.process_time):
    while clock() < until:
        for _ in range(200):
            pass


def twenty(until, clock=time.process_time):
    while clock() < until:
        for _ in range(200):
            pass


def ten(until, clock=time.process_time):
    while clock() < until:
        for _ in range(200):
            pass


def main():
    print(json.dumps({"pid": os.getpid(), "shares": {"seventy": 70, "twenty": 20, "ten": 10}}))
    sys.stdout.flush()
    # Each slice ends where the plan says, not "its length from now": what one slice runs over,
    # the next one gets back, so the shares hold over any stretch of time.
    mark = time.process_time()
    while time.monotonic() < END and os.getppid() == PARENT:
        for function, length in ((seventy, 0.0217), (twenty, 0.0062), (ten, 0.0031)):
            mark += length
            function(mark)


main()
