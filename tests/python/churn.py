"""Compiles functions, calls them and drops them, all the time, under the same names in two files,
so that code objects of one are freed where those of the other are made next.

`draw_a` calls only `render_N` of template_a, which calls only `part_N` of template_a, with the same
N; likewise for b. In template_b every line number is higher by 500.
Prints one JSON line: `pid`.
"""
import json
import os
import sys
import time

PARENT = os.getppid()
END = time.monotonic() + 180
TEMPLATE = "\n" * 3 + """\
def part_{n}(count):
    total = 0
    for value in range(count):
        total += value
    return total

def render_{n}(count):
    return part_{n}(count) + part_{n}(count)
"""


def compiled(number, file, shift):
    scope = {}
    exec(compile("\n" * shift + TEMPLATE.format(n=number), file, "exec"), scope)
    return scope.pop("render_%d" % number)


def draw_a(number, count):
    compiled(number, "/templates/template_a.html", 0)(count)


def draw_b(number, count):
    compiled(number, "/templates/template_b.html", 500)(count)


def main():
    turn = 0
    while time.monotonic() < END and os.getppid() == PARENT:
        turn += 1
        # Some live long enough to be read at leisure, most are gone at once.
        count = 60000 if turn % 20 < 2 else 1500
        draw_a(turn % 7, count)
        draw_b(turn * 3 % 7, count)


print(json.dumps({"pid": os.getpid()}))
sys.stdout.flush()
main()
