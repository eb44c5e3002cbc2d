"""Forges the structures of its own interpreter and then spins under them, for ever.

Arguments: what to forge (a key of FORGERIES), and a JSON object of offsets, named as the fields of
pyebpf's layouts. The forging frames are numbered from the newest, which is 0; number 4 is the one
that is forged. Prints one JSON line: `pid`, and `stack` as in known_stack.py as it was before.
"""
import ctypes
import gc
import json
import os
import signal
import sys

KERNEL = 0xFFFF888000001000
NOWHERE = 0x0123456789ABCDE8
OFFSET = json.loads(sys.argv[2])
PARENT = os.getppid()
KEPT = []

at = ctypes.c_uint64.from_address
narrow = ctypes.c_uint32.from_address
ctypes.pythonapi.PyThreadState_Get.restype = ctypes.c_void_p
THREAD = ctypes.pythonapi.PyThreadState_Get()


def name_of(code):
    return getattr(code, "co_qualname", code.co_name)


def copied(address, size):
    """Memory of our own that begins like the object there."""
    memory = ctypes.create_string_buffer(size + 64)
    place = (ctypes.addressof(memory) + 15) // 16 * 16
    ctypes.memmove(place, address, size)
    KEPT.append(memory)
    return place


def forged_code():
    """A copy of the code object of the function of the forged frame."""
    return copied(id(level.__code__), 256)


def forged_text(length=None, state=None):
    text = "a name of its own for this test"
    KEPT.append(text)
    place = copied(id(text), OFFSET["str_ascii"] + len(text) + 1)
    if length is not None:
        at(place + OFFSET["str_length"]).value = length
    if state is not None:
        narrow(place + OFFSET["str_state"]).value = state
    return place


def with_code(field, value):
    def forge(frames):
        code = forged_code()
        at(code + OFFSET[field]).value = value()
        return [(frames[4] + OFFSET["frame_code"], code)]

    return forge


def code_is(value):
    return lambda frames: [(frames[4] + OFFSET["frame_code"], value())]


def previous_is(value):
    return lambda frames: [(frames[4] + OFFSET["frame_previous"], value(frames))]


def long_table():
    table = b"\x80\x00" * 20
    KEPT.append(table)
    place = copied(id(table), 64)
    at(place + OFFSET["bytes_size"]).value = 1 << 60
    return place


def garbage_table():
    table = bytes((number * number * 31 + 7) & 255 for number in range(5000))
    KEPT.append(table)
    return id(table)


def newest_is(value):
    return lambda frames: [(newest_pointer(), value)]


def newest_pointer():
    if OFFSET["chain"] == 1:  # of 3.11 and 3.12: through a `_PyCFrame`
        return at(THREAD + OFFSET["thread_frame"]).value + OFFSET["cframe_frame"]
    return THREAD + OFFSET["thread_frame"]


def threads_in_a_ring(frames):
    return [
        (THREAD + OFFSET["thread_id"], 1),
        (THREAD + OFFSET["thread_next"], THREAD),
    ]


FORGERIES = {
    "cycle": previous_is(lambda frames: frames[2]),
    "cycle of one": previous_is(lambda frames: frames[4]),
    "caller in the kernel": previous_is(lambda frames: KERNEL),
    "caller nowhere": previous_is(lambda frames: NOWHERE),
    "caller at the end": previous_is(lambda frames: 0xFFFFFFFFFFFFFFF8),
    "newest in the kernel": newest_is(KERNEL),
    "code in the kernel": code_is(lambda: KERNEL),
    "code is none": code_is(lambda: id(KEPT)),
    "name in the kernel": with_code("code_name", lambda: KERNEL),
    "name without end": with_code("code_name", lambda: forged_text(length=1 << 60)),
    "negative name": with_code("code_name", lambda: forged_text(length=(1 << 64) - 1)),
    "name of no kind": with_code("code_name", lambda: forged_text(state=0xFFFFFFFF)),
    "file without end": with_code("code_filename", lambda: forged_text(length=1 << 60)),
    "table without end": with_code("code_linetable", long_table),
    "table of garbage": with_code("code_linetable", garbage_table),
    "instruction anywhere": lambda frames: [
        (frames[4] + OFFSET["frame_instruction"], 0x7000000070000000)
    ],
    "threads in a ring": threads_in_a_ring,
    "flips": lambda frames: [
        (frames[4] + OFFSET["frame_previous"], value)
        for value in (frames[5], frames[2], KERNEL, frames[5], frames[4], NOWHERE)
    ],
}


def spin(forge):
    # Alone with the interpreter: no other frame may come or go from here on.
    pointer = newest_pointer()
    frame = sys._getframe()
    first = frame.f_code.co_firstlineno
    lines = list(range(first + 1, first + 40))
    stack = [(name_of(frame.f_code), frame.f_code.co_filename, lines)]
    while frame.f_back is not None:
        frame = frame.f_back
        stack.append((name_of(frame.f_code), frame.f_code.co_filename, [frame.f_lineno]))
    stack.reverse()
    frame = None
    frames = [at(pointer).value]
    while len(frames) < 8:
        frames.append(at(frames[-1] + OFFSET["frame_previous"]).value)
    writes = forge(frames)
    print(json.dumps({"pid": os.getpid(), "stack": stack}))
    sys.stdout.flush()
    cells = [(at(address), value) for address, value in writes]
    flips = len(cells) == 6
    for cell, value in cells:
        cell.value = value
    while not flips:
        pass
    while True:
        for cell, value in cells:
            cell.value = value


def level(depth, forge):
    if depth:
        level(depth - 1, forge)
    else:
        spin(forge)


if __name__ == "__main__":
    gc.disable()
    # It never looks at anything again: the kernel ends it with its parent (PR_SET_PDEATHSIG).
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() == PARENT:
        level(20, FORGERIES[sys.argv[1]])
