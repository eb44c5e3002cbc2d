/* Prints the build (`3.13`, or `3.13t` without a GIL), then one line `field offset` for each row of
   rows.rs; 0 where the build has no such field. Compiled against the headers of CPython 2.7 and 3.6
   to 3.15. */
#define Py_BUILD_CORE 1
#include <stddef.h>
#include <stdio.h>

#include <Python.h>
#include <frameobject.h>

#define MINOR PY_MINOR_VERSION
#define OLD (PY_MAJOR_VERSION == 2)
#if (OLD && MINOR == 7) || (PY_MAJOR_VERSION == 3 && MINOR >= 6)

#if OLD
/* Above every branch below that asks for a later version alone. */
#include <code.h>
#endif

#if !OLD && MINOR == 7
#include <internal/pystate.h>
#elif MINOR == 8
#include <internal/pycore_pystate.h>
#elif MINOR >= 9
#include <internal/pycore_runtime.h>
#include <internal/pycore_interp.h>
#endif
#if MINOR == 6
#include <code.h>
#endif
#if MINOR >= 11
#include <internal/pycore_frame.h>
#include <internal/pycore_code.h>
#endif
#if MINOR >= 14
#include <internal/pycore_interpframe.h>
#endif

#define AT(type, field) offsetof(type, field)
#define ROW(name, offset) printf("%s %zu\n", #name, (size_t)(offset))

int main(void) {
#ifdef Py_GIL_DISABLED
    printf("%d.%dt\n", PY_MAJOR_VERSION, MINOR);
#else
    printf("%d.%d\n", PY_MAJOR_VERSION, MINOR);
#endif

#if OLD || MINOR == 6
    ROW(interpreters_head, 0);
#else
    ROW(interpreters_head, AT(_PyRuntimeState, interpreters.head));
#endif
#if !OLD && MINOR >= 7 && MINOR <= 11
    ROW(current, AT(_PyRuntimeState, gilstate.tstate_current));
    ROW(tss_key, AT(_PyRuntimeState, gilstate.autoTSSkey) + AT(Py_tss_t, _key));
#else
    ROW(current, 0);
#if MINOR >= 12 && MINOR <= 14
    ROW(tss_key, AT(_PyRuntimeState, autoTSSkey) + AT(Py_tss_t, _key));
#else
    ROW(tss_key, 0);
#endif
#endif

    ROW(interpreter_next, AT(PyInterpreterState, next));
#if MINOR <= 10
    ROW(interpreter_threads, AT(PyInterpreterState, tstate_head));
#else
    ROW(interpreter_threads, AT(PyInterpreterState, threads.head));
#endif

    ROW(thread_next, AT(PyThreadState, next));
    ROW(thread_interpreter, AT(PyThreadState, interp));
#if MINOR <= 10
    ROW(thread_frame, AT(PyThreadState, frame));
#elif MINOR <= 12
    ROW(thread_frame, AT(PyThreadState, cframe));
#else
    ROW(thread_frame, AT(PyThreadState, current_frame));
#endif
    ROW(thread_id, AT(PyThreadState, thread_id));
#if MINOR == 11 || MINOR == 12
    ROW(cframe_frame, AT(_PyCFrame, current_frame));
#else
    ROW(cframe_frame, 0);
#endif
#if MINOR == 11
    ROW(cframe_previous, AT(_PyCFrame, previous));
    ROW(frame_is_entry, AT(_PyInterpreterFrame, is_entry));
#else
    ROW(cframe_previous, 0);
    ROW(frame_is_entry, 0);
#endif
#if MINOR == 12
    ROW(thread_exceptions, AT(PyThreadState, exc_info));
    ROW(thread_stack_top, AT(PyThreadState, datastack_top));
    ROW(code_frame_size, AT(PyCodeObject, co_framesize));
#else
    ROW(thread_exceptions, 0);
    ROW(thread_stack_top, 0);
    ROW(code_frame_size, 0);
#endif

#if MINOR <= 11
    ROW(gil_offset, 0);
#elif defined(Py_GIL_DISABLED)
    ROW(gil_offset, AT(PyThreadState, state));
#elif MINOR == 12
    ROW(gil_offset, AT(PyInterpreterState, ceval.gil));
#elif MINOR == 13
    ROW(gil_offset, AT(PyThreadState, _status));
#else
    ROW(gil_offset, AT(PyThreadState, holds_gil));
#endif

#if MINOR <= 10
    ROW(frame_code, AT(PyFrameObject, f_code));
    ROW(frame_previous, AT(PyFrameObject, f_back));
    ROW(frame_instruction, AT(PyFrameObject, f_lasti));
    ROW(frame_owner, 0);
#else
#if MINOR <= 12
    ROW(frame_code, AT(_PyInterpreterFrame, f_code));
    ROW(frame_instruction, AT(_PyInterpreterFrame, prev_instr));
#else
    ROW(frame_code, AT(_PyInterpreterFrame, f_executable));
    ROW(frame_instruction, AT(_PyInterpreterFrame, instr_ptr));
#endif
    ROW(frame_previous, AT(_PyInterpreterFrame, previous));
    ROW(frame_owner, AT(_PyInterpreterFrame, owner));
#endif
#if MINOR >= 14 && defined(Py_GIL_DISABLED)
    ROW(frame_tlbc, AT(_PyInterpreterFrame, tlbc_index));
    ROW(code_tlbc, AT(PyCodeObject, co_tlbc));
#else
    ROW(frame_tlbc, 0);
    ROW(code_tlbc, 0);
#endif

    ROW(code_first_line, AT(PyCodeObject, co_firstlineno));
    ROW(code_filename, AT(PyCodeObject, co_filename));
    ROW(code_name, AT(PyCodeObject, co_name));
#if MINOR <= 10
    ROW(code_qualname, 0);
    ROW(code_bytes, AT(PyCodeObject, co_code));
#else
    ROW(code_qualname, AT(PyCodeObject, co_qualname));
    ROW(code_bytes, AT(PyCodeObject, co_code_adaptive));
#endif
#if MINOR <= 9
    ROW(code_linetable, AT(PyCodeObject, co_lnotab));
#else
    ROW(code_linetable, AT(PyCodeObject, co_linetable));
#endif
#if MINOR <= 11
    ROW(code_version, 0);
#else
    ROW(code_version, AT(PyCodeObject, co_version));
#endif

    ROW(object_type, AT(PyObject, ob_type));
#if OLD
    /* A line table is a string, as names are. */
    ROW(bytes_size, AT(PyStringObject, ob_size));
    ROW(bytes_data, AT(PyStringObject, ob_sval));
    ROW(str_length, AT(PyStringObject, ob_size));
    ROW(str_hash, AT(PyStringObject, ob_shash));
    ROW(str_state, 0);
    ROW(str_ascii, AT(PyStringObject, ob_sval));
    ROW(str_compact, AT(PyStringObject, ob_sval));
#else
    ROW(bytes_size, AT(PyBytesObject, ob_base) + AT(PyVarObject, ob_size));
    ROW(bytes_data, AT(PyBytesObject, ob_sval));
    ROW(str_length, AT(PyASCIIObject, length));
    ROW(str_hash, AT(PyASCIIObject, hash));
    ROW(str_state, AT(PyASCIIObject, state));
    ROW(str_ascii, sizeof(PyASCIIObject));
    ROW(str_compact, sizeof(PyCompactUnicodeObject));
#endif
#if MINOR <= 11
    ROW(modules, AT(PyInterpreterState, modules));
#else
    ROW(modules, AT(PyInterpreterState, imports.modules));
#endif
#if OLD
    ROW(type_keys, 0);
#else
    ROW(type_keys, AT(PyHeapTypeObject, ht_cached_keys));
#endif
    return 0;
}

#else

int main(void) {
    printf("%d.%d\n", PY_MAJOR_VERSION, MINOR);
    return 0;
}

#endif
