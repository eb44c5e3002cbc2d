"""Calls short functions in every way that Python has, so that many samples fall into the middle of
a call or a return. `CALLERS` says who can call whom; nothing else may ever be seen.
Prints one JSON line: `pid`, `file`, `callers` (name → names of its possible callers) and `lines`
(name → first and last line).
"""
import dis
import functools
import json
import os
import sys
import time

PARENT = os.getppid()
END = time.monotonic() + 180
CALLERS = {}
LINES = {}


def called_by(*callers):
    """Notes who can call the function. The note is taken at import; calls are not wrapped."""

    def note(function):
        code = function.__code__
        name = getattr(code, "co_qualname", code.co_name)
        CALLERS.setdefault(name, set()).update(callers)
        last = max(line for _, line in dis.findlinestarts(code) if line)
        LINES[name] = [code.co_firstlineno, last]
        return function

    return note


@called_by("sum_up", "reduced")
def add(one, two):
    return one + two


@called_by("arithmetic")
def sum_up(count):
    total = 0
    for value in range(count):
        total = add(total, value)
    return total


@called_by("round_trip")
def arithmetic():
    return sum_up(20)


@called_by("sorted_callback")
def sort_key(value):
    return negate(value)


@called_by("sort_key", "mapped_item")
def negate(value):
    return -value


@called_by("callbacks")
def sorted_callback():
    return sorted(range(10), key=sort_key)


@called_by("mapped")
def mapped_item(value):
    return negate(value)


@called_by("callbacks")
def mapped():
    return list(map(mapped_item, range(10)))


@called_by("callbacks")
def reduced():
    return functools.reduce(add, range(10))


@called_by("round_trip")
def callbacks():
    sorted_callback()
    mapped()
    return reduced()


@called_by("consume", "delegating")
def leaf_generator(count):
    for value in range(count):
        yield step(value)


@called_by("leaf_generator")
def step(value):
    return value + 1


@called_by("consume")
def delegating(count):
    yield from leaf_generator(count)


@called_by("generators")
def consume():
    total = 0
    for value in leaf_generator(10):
        total += value
    for value in delegating(10):
        total += value
    return total


@called_by("round_trip")
def generators():
    return consume()


@called_by("await_twice")
async def ready(value):
    return awaited(value)


@called_by("ready")
def awaited(value):
    return value


@called_by("drive")
async def await_twice():
    return await ready(1), await ready(2)


@called_by("round_trip")
def drive():
    coroutine = await_twice()
    try:
        coroutine.send(None)
    except StopIteration:
        pass


@called_by("attempt")
def raises(depth):
    return fails(depth)


@called_by("raises")
def fails(depth):
    raise KeyError(depth)


@called_by("exceptions")
def attempt(depth):
    try:
        raises(depth)
    except KeyError:
        return handle()


@called_by("attempt")
def handle():
    return None


@called_by("round_trip")
def exceptions():
    for depth in range(5):
        attempt(depth)


PREFIX = sys.version_info >= (3, 11)


def in_class(kind, name):
    return kind + "." + name if PREFIX else name


class Small:
    @called_by("constructors")
    def __init__(self, value):
        self.value = self.prepare(value)

    @called_by(in_class("Small", "__init__"))
    def prepare(self, value):
        return value

    @called_by("constructors")
    def __enter__(self):
        return self

    @called_by("constructors")
    def __exit__(self, *details):
        return self.release()

    @called_by(in_class("Small", "__exit__"))
    def release(self):
        return False

    @called_by("constructors")
    def __add__(self, other):
        return combine(self, other)

    @property
    @called_by("combine")
    def doubled(self):
        return self.value * 2


@called_by(in_class("Small", "__add__"))
def combine(one, two):
    return one.doubled + two.doubled


@called_by("round_trip")
def constructors():
    for value in range(5):
        with Small(value) as small:
            small + small


@called_by("round_trip")
def recursive(depth):
    return deeper(depth) if depth else 0


@called_by("recursive", "deeper")
def deeper(depth):
    return deeper(depth - 1) if depth else 0


@called_by("main")
def round_trip():
    arithmetic()
    callbacks()
    generators()
    drive()
    exceptions()
    constructors()
    recursive(12)


@called_by("<module>")
def main():
    while time.monotonic() < END and os.getppid() == PARENT:
        for _ in range(50):
            round_trip()


callers = {name: sorted(names) for name, names in CALLERS.items()}
facts = {"pid": os.getpid(), "file": __file__, "callers": callers, "lines": LINES}
print(json.dumps(facts))
sys.stdout.flush()
main()
