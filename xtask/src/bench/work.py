"""What `cargo xtask bench` measures: `work.py MODE DEPTH ten|all`, under a stack of
exactly DEPTH frames. `ten`: through ten functions in two files, which is what deep stacks look
like; `all`: every frame another function. It ends with the process that started it.

`block`: for each line of standard input, a number of seconds, does equal units of work for about so
long and answers with the seconds that each unit took. `coded-N`: the same in C, N calls deep. `busy`: works until it is killed. `turns`:
works for 2 ms of each second. `sleep`: waits. `storm`: forks children that end at once. `nested-N`:
works in C, N calls deep. `libraries`: takes turns with as many libraries mapped as the standard
library has use for. Each says first that it is up, and under how many frames.

`work.py brief SECONDS` works for so many seconds of its CPU, says how many they were, and ends.
"""
import os
import sys
import time
from functools import partial

PARENT = os.getppid()
# Seconds that a unit of work takes when nothing disturbs it.
UNIT = 0.02

clock = time.perf_counter


def up(frame):
    frames = 0
    while frame is not None:
        frames += 1
        frame = frame.f_back
    print("up under", frames, flush=True)


def blocks():
    steps = 1 << 14
    best = 0.0
    up(sys._getframe())
    for line in sys.stdin:
        while best == 0.0:
            # The first block finds out how many steps a unit is: the quickest of some tries.
            tries = []
            for _ in range(5):
                start = clock()
                x = 1
                for _ in range(steps):
                    x = x * 5 + 7 & 65535
                tries.append(clock() - start)
            best = min(tries)
            steps = int(steps * UNIT / best) + 1
        times = []
        end = clock() + float(line)
        while not times or clock() < end:
            start = clock()
            x = 1
            for _ in range(steps):
                x = x * 5 + 7 & 65535
            times.append(clock() - start)
        print(" ".join(map(repr, times)), flush=True)


def busy():
    up(sys._getframe())
    while os.getppid() == PARENT:
        x = 1
        for _ in range(1 << 18):
            x = x * 5 + 7 & 65535


def turns():
    up(sys._getframe())
    while os.getppid() == PARENT:
        end = time.process_time() + 0.002
        while time.process_time() < end:
            for _ in range(1 << 10):
                pass
        time.sleep(1)


def sleep():
    up(sys._getframe())
    while os.getppid() == PARENT:
        time.sleep(1)


def storm():
    up(sys._getframe())
    while os.getppid() == PARENT:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)


def encoder(levels):
    """What encodes as JSON, and a list of numbers in so many others: C calls itself for each."""
    from json.encoder import c_make_encoder, encode_basestring_ascii
    encode = c_make_encoder(
        None, None, encode_basestring_ascii, None, ":", ",", False, False, True
    )
    data = [1] * 100000
    for _ in range(levels):
        data = [data]
    return encode, data


def nested(levels):
    encode, data = encoder(levels)
    up(sys._getframe())
    while os.getppid() == PARENT:
        encode(data, 0)


def coded(levels):
    encode, data = encoder(levels)
    up(sys._getframe())
    for line in sys.stdin:
        times = []
        end = clock() + float(line)
        while not times or clock() < end:
            start = clock()
            encode(data, 0)
            times.append(clock() - start)
        print(" ".join(map(repr, times)), flush=True)


def libraries():
    """Maps what the standard library has of C."""
    import importlib
    for name in (
        "array bz2 cmath csv ctypes curses datetime decimal fcntl grp hashlib json lzma math mmap "
        "multiprocessing pickle pyexpat queue random readline resource select socket sqlite3 ssl "
        "statistics struct syslog termios unicodedata uuid zlib zoneinfo"
    ).split():
        try:
            importlib.import_module(name)
        except ImportError:
            pass


def brief(seconds):
    begin = time.process_time()
    worked = 0.0
    while worked < seconds:
        x = 1
        for _ in range(1 << 10):
            x = x * 5 + 7 & 65535
        worked = time.process_time() - begin
    print(worked)


def ten(between, leaf):
    """A function that puts `between` frames on the stack, through ten functions, and then leaf."""
    names = {"leaf": leaf}
    for number in range(10):
        source = "def step_%d(left):\n    return step_%d(left - 1) if left > 1 else leaf()\n"
        file = "/srv/application/package/module_%d.py" % (number % 2)
        exec(compile(source % (number, (number + 1) % 10), file, "exec"), names)
    return lambda: names["step_0"](between - 1)


def each_its_own(between, leaf):
    """The same with as many functions as frames."""
    names = {"step_%d" % between: leaf}
    for number in range(between):
        source = "def step_%d():\n    return step_%d()\n" % (number, number + 1)
        exec(compile(source, "/srv/application/package/module.py", "exec"), names)
    return names["step_0"]


def deep(mode, depth, shape):
    depth = int(depth)
    sys.setrecursionlimit(depth + 200)
    name, _, levels = mode.partition("-")
    leaf = {
        "block": blocks, "busy": busy, "coded": coded, "libraries": turns, "nested": nested, "sleep": sleep,
        "storm": storm, "turns": turns,
    }[name]
    if name == "libraries":
        libraries()
    if levels:
        leaf = partial(leaf, int(levels))
    # The module and the leaf are frames, too.
    return (ten if shape == "ten" else each_its_own)(depth - 2, leaf)


try:
    if sys.argv[1] == "brief":
        brief(float(sys.argv[2]))
    else:
        deep(*sys.argv[1:])()
except (BrokenPipeError, KeyboardInterrupt):
    # Nobody listens any more. No flush at exit either: it would fail again, and say so.
    os._exit(1)
