//! One parser of foreign bytes under libFuzzer: the one that the environment variable `PYEBPF_FUZZ`
//! names. `cargo xtask fuzz` builds it with what libFuzzer needs to see where an input leads.

#![no_main]

use std::sync::LazyLock;

use pyebpf::fuzz::PARSERS;

static PARSER: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let wanted = std::env::var("PYEBPF_FUZZ").unwrap_or_default();
    let found = PARSERS.iter().find(|(name, _)| *name == wanted);
    found
        .unwrap_or_else(|| panic!("PYEBPF_FUZZ is {wanted:?}, which is no parser"))
        .1
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (*PARSER)(bytes));
