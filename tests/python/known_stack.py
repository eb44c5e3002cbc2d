"""Spins under a stack that has one frame of every kind of Python code.

Prints one JSON line: `pid`, and `stack`, the frames from root to leaf as the interpreter itself
tells them at the start of the spin: name, file, lines. All lines but the leaf's are single.
"""
import asyncio
import functools
import json
import os
import sys
import time

DEPTH = 60
PARENT = os.getppid()
END = time.monotonic() + 180


def name_of(code):
    return getattr(code, "co_qualname", code.co_name)


def spin():
    frame = sys._getframe()
    first = frame.f_code.co_firstlineno
    stack = [(name_of(frame.f_code), frame.f_code.co_filename, list(range(first + 12, first + 15)))]
    while frame.f_back is not None:
        frame = frame.f_back
        stack.append((name_of(frame.f_code), frame.f_code.co_filename, [frame.f_lineno]))
    stack.reverse()
    frame = None
    print(json.dumps({"pid": os.getpid(), "stack": stack}))
    sys.stdout.flush()
    monotonic, getppid = time.monotonic, os.getppid
    while monotonic() < END and getppid() == PARENT:
        for _ in range(20000):
            pass


def from_partial(one, two):
    spin()
    return one, two


def from_sort_key(value):
    functools.partial(from_partial, 1)(two=value)
    return value


def outer():
    kept = [3, 1]

    def closure():
        kept.sort(key=from_sort_key)
        return kept

    def middle():
        return closure()

    return middle()


def from_class_body():
    class Body:
        made = outer()

    return Body


def comprehension():
    return [from_class_body() for _ in range(1)]


def from_set_comprehension():
    return {key: comprehension() for key in (1,)}


call = lambda function: function()  # noqa: E731


async def innermost():
    return call(from_set_comprehension)


async def middle_await():
    return await innermost()


async def under_asyncio():
    return await middle_await()


def event_loop():
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(under_asyncio())
    finally:
        loop.close()


class Awaitable:
    def __await__(self):
        event_loop()
        return iter(())


async def by_hand():
    return await Awaitable()


def drive_by_hand():
    coroutine = by_hand()
    try:
        coroutine.send(None)
    except StopIteration:
        pass


def inner_generator():
    yield drive_by_hand()


def generator():
    yield from inner_generator()


def from_generator_expression():
    return next(value for value in generator())


class Äpfel:
    def méthode(self):
        return from_generator_expression()

    @classmethod
    def Жук(cls):
        return cls().méthode()

    @staticmethod
    def 𐐀𐐁():
        return Äpfel.Жук()


class Base:
    def __init__(self):
        self.value = self.method()

    def method(self):
        return Äpfel.𐐀𐐁()

    @property
    def attribute(self):
        return Derived().value


class Derived(Base):
    def __init__(self):
        super().__init__()

    def method(self):
        return super().method()


def recurse(depth):
    if depth:
        return recurse(depth - 1)
    return Base.attribute.fget(None)


def multi_line_call():
    return recurse(
        DEPTH
        - 1,
    )


def from_exception_handler():
    try:
        raise ValueError("caught")
    except ValueError:
        with open(os.devnull):
            return multi_line_call()


if __name__ == "__main__":
    from_exception_handler()
