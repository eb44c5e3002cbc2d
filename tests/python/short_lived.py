"""Waits for SIGUSR1 below a stack that never ran before: a hundred functions, some of names that
need wider characters, one with a line table of several KiB. Then it spins there for 0.3 s and
is killed. Prints one JSON line: `pid` and `stack` as in known_stack.py; the lines of `huge` are none.
"""
import json
import os
import signal
import sys
import time

NAMES = [u"na\u00efve", u"\u95a2\u6570", u"\U00012000"] + ["f%d" % number for number in range(100)]


class Below:
    def method(self):
        spin()


def spin():
    frame = sys._getframe()
    code = frame.f_code
    first = code.co_firstlineno
    stack = [("spin", code.co_filename, list(range(first + 14, first + 20)))]
    while frame.f_back is not None:
        frame = frame.f_back
        code = frame.f_code
        line = 0 if code.co_name == "huge" else frame.f_lineno
        stack.append((getattr(code, "co_qualname", code.co_name), code.co_filename, [line]))
    frame = None
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    print(json.dumps({"pid": os.getpid(), "stack": stack[::-1]}))
    sys.stdout.flush()
    signal.sigtimedwait([signal.SIGUSR1], 60)
    end = time.process_time() + 0.3
    while time.process_time() < end:
        for _ in range(20000):
            pass
    os.kill(os.getpid(), signal.SIGKILL)


def make(name, caller):
    """A function of this name, in a file of this name, that calls another one."""
    source = u"def {0}(call):\n\n    call()\n".format(name)
    space = {}
    exec(compile(source, u"/srv/some/folder/%s.py" % name, "exec"), space)
    return lambda: space[name](caller)


def make_huge(caller):
    lines = "".join("    if call is None: call(%d, *(), **{})\n" % n for n in range(3000))
    space = {}
    exec(compile("def huge(call):\n" + lines + "    call()\n", "huge.py", "exec"), space)
    return lambda: space["huge"](caller)


call = Below().method
for name in NAMES:
    call = make(name, call)
call = make_huge(call)
call()
