//! Functions of the interpreter that do nothing but call another: between a Python frame and the C
//! function that it has called they tell nothing. Nor does code that it has made to be seen in the
//! stead of a Python function.

/// How their names begin, from 2.7 to 3.15 (CPython's Objects/call.c, methodobject.c, descrobject.c,
/// classobject.c; Python/ceval.c).
const CALLS: [&str; 23] = [
    "PyCFunction_Call",
    "PyEval_CallObject",
    "PyObject_Call",
    "PyObject_Vectorcall",
    "PyVectorcall_Call",
    "_PyCFunction_FastCall",
    "_PyEval_EvalFrame",
    "_PyEval_Vector",
    "_PyFunction_FastCall",
    "_PyFunction_Vectorcall",
    "_PyMethodDef_RawFastCall",
    "_PyMethodDescr_",
    "_PyObject_Call",
    "_PyObject_FastCall",
    "_PyObject_MakeTpCall",
    "_PyObject_Vectorcall",
    "_PyVectorcall_Call",
    "call_function",
    "cfunction_call",
    "cfunction_vectorcall_",
    "do_call_core",
    "method_vectorcall",
    "object_vacall",
];

/// Whether a function of the interpreter is one of these.
pub(super) fn only_calls(function: &str) -> bool {
    CALLS.iter().any(|call| function.starts_with(call))
}

/// Whether code in no file is what CPython runs a Python function through, for perf to see (`-X perf`;
/// `perf_map_write_entry` of its Python/perf_trampoline.c).
pub(super) fn repeats_python(name: &str) -> bool {
    name.starts_with("py::")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_works_is_no_glue() {
        for glue in [
            "PyObject_CallOneArg",
            "cfunction_vectorcall_FASTCALL",
            "method_vectorcall_O",
        ] {
            assert!(only_calls(glue), "{glue}");
        }
        for works in [
            "_asyncio_call_function",
            "list_sort",
            "_PyObject_GenericGetAttrWithDict",
            "PyObject_Repr",
            "method_get",
        ] {
            assert!(!only_calls(works), "{works}");
        }
        assert!(CALLS.is_sorted());
    }
}
