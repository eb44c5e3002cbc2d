"""Records line tables with what the interpreter itself reads out of them.

Run with the Python whose tables are wanted; writes JSON to standard output:
    python3.12 -S record_lines.py > ../data/lines/3.12.json

The truth is co_lines() from 3.10 on and dis.findlinestarts() before, and, where ctypes is there,
PyCode_Addr2Line() must say the same. `runs` are [code units, line or null], in order.
"""
import argparse
import ast
import dis
import json
import json.decoder
import sys
import textwrap
import types

try:
    from ctypes import py_object, pythonapi
    addr2line = pythonapi.PyCode_Addr2Line
    addr2line.argtypes = [py_object, __import__("ctypes").c_int]
except (ImportError, AttributeError):
    addr2line = None

ODD = '''
def gap(x):
    a = x
%(gap)s
    return a

def long_line(x):
    a = [%(items)s]
    return a

def backwards(f):
    return f(
        1,
        f(2,
          3), f(
            4))

def chain(x):
    return (x
            .upper()
            .lower()
            .strip())

def loops(n):
    total = 0
    for i in range(n):
        if i %% 2:
            continue
        while total < i:
            total += (
                i
            )
            if total > 3: break
        else:
            total -= 1
    return total

def tries(f):
    try:
        f()
    except (ValueError,
            KeyError) as error:
        raise RuntimeError(
            "x"
        ) from error
    except TypeError:
        return 1
    else:
        pass
    finally:
        f(2)
    with f() as a, \\
         f() as b:
        return a

def nested():
    def inner(a=
              1):
        return lambda: (
            a)
    class Local:
        x = 1

        def method(self):
            return [y
                    for y in self.x
                    if y]
    return inner, Local

@classmethod
@staticmethod
def decorated(
    a,
    b=2,
):
    """doc

    string"""
    return a

async def coroutine(x):
    async with x as y:
        async for z in y:
            await z
    return [await q async for q in x]

def generator():
    x = yield
    yield from (
        x)

def dead(x):
    if 0:
        unreachable()
    assert x, (
        "message")
    return x if x else \\
        None

def empty():
    pass
''' % {"gap": "\n" * 700, "items": ", ".join("x + %d" % i for i in range(90))}
MATCH = '''
def matches(x):
    match x:
        case {"a": [1, *rest],
              **more} if rest:
            return more
        case str() | \\
             int():
            return 1
    return 2
'''
LATE = "\n" * 70000 + "def late(x):\n    return [x,\n" + "\n" * 300 + "    x.y]\n"


def codes_of(code):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            for inner in codes_of(constant):
                yield inner


def lines_of(code):
    """The line of each code unit, in 2.7 of each byte."""
    if sys.version_info < (3,):
        starts, line, lines = dict(dis.findlinestarts(code)), code.co_firstlineno, []
        for at in range(len(code.co_code)):
            line = starts.get(at, line)
            lines.append(line)
            said = addr2line(code, at)
            assert said == line, (code, at, said, line)
        return lines
    units = len(code.co_code) // 2
    lines = [None] * units
    if hasattr(code, "co_lines"):
        for start, end, line in code.co_lines():
            for unit in range(start // 2, end // 2):
                lines[unit] = line
    else:
        starts = dict(dis.findlinestarts(code))
        line = code.co_firstlineno
        for unit in range(units):
            line = starts.get(2 * unit, line)
            lines[unit] = line
    if addr2line is not None:
        for unit, line in enumerate(lines):
            said = addr2line(code, 2 * unit)
            assert said == (-1 if line is None else line), (code, unit, said, line)
    return lines


def record(code):
    runs = []
    for line in lines_of(code):
        if runs and runs[-1][1] == line:
            runs[-1][0] += 1
        else:
            runs.append([1, line])
    table = getattr(code, "co_linetable", None)
    if sys.version_info < (3, 10):
        table = code.co_lnotab
    return {
        "name": getattr(code, "co_qualname", code.co_name),
        "first": code.co_firstlineno,
        "table": table.hex() if sys.version_info >= (3,) else table.encode("hex"),
        "runs": runs,
    }


def main():
    sources = [ODD] if sys.version_info >= (3,) else []
    sources += [LATE] + ([MATCH] if sys.version_info >= (3, 10) else [])
    codes = [c for s in sources for c in codes_of(compile(s, "odd.py", "exec"))]
    functions = [argparse.ArgumentParser._parse_known_args, textwrap.dedent]
    if sys.version_info >= (3, 7):
        import asyncio.base_events
        functions[1:1] = [
            asyncio.base_events.BaseEventLoop.create_connection,
            ast.literal_eval,
            json.decoder.py_scanstring,
        ]
        functions.append(types.resolve_bases)
    elif sys.version_info < (3,):
        functions += vars(textwrap.TextWrapper).values() + vars(json.decoder).values()
        functions += vars(argparse.ArgumentParser).values() + vars(ast).values()
        functions = [function for function in functions if isinstance(function, types.FunctionType)]
    for function in functions:
        codes.extend(codes_of(function.__code__))
    print("[\n" + ",\n".join(json.dumps(record(c), separators=(",", ":")) for c in codes) + "\n]")


main()
