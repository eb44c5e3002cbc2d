//! Names as people wrote them: C++ (Itanium ABI) and Rust names out of those that linkers see. Of
//! C++ the types of the parameters are shown and not that of the result. What compilers append to the
//! parts and copies that they make of a function (`f.cold`, `f.constprop.0`) is left out: it is that
//! function. A name comes from a foreign
//! file: what is longer than it may be, or grows beyond that, is shown as it stands.

use std::fmt::{self, Write};

use cpp_demangle::{DemangleOptions, ParseOptions, Symbol};

/// Most bytes of a name, as it stands and as it is shown. Of libtorch, whose names are the longest,
/// one in ten thousand is longer.
pub(super) const NAME_MAX: usize = 4096;
/// How deep the parts of a C++ name may be nested.
const DEPTH_MAX: u32 = 96;

/// The name to be shown; `name` itself where it is neither C++ nor Rust.
pub(super) fn demangle(name: &str) -> String {
    let name = whole(name);
    let shown = (name.len() <= NAME_MAX).then(|| rust(name).or_else(|| cpp(name)));
    shown.flatten().unwrap_or_else(|| name.to_owned())
}

/// The name of the function that a part or a copy was made of, by GCC (`clone_function_name` in
/// `gcc/cgraphclones.cc`) or LLVM (`ThinLTO`'s promotion of local functions).
fn whole(mut name: &str) -> &str {
    const KINDS: [&str; 8] = [
        "cold",
        "constprop",
        "isra",
        "llvm",
        "localalias",
        "lto_priv",
        "part",
        "warm",
    ];
    loop {
        let numbered = name.rsplit_once('.').filter(|(_, number)| {
            !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
        });
        let (before, _) = numbered.unwrap_or((name, ""));
        match before.rsplit_once('.') {
            Some((of, kind)) if KINDS.contains(&kind) && !of.is_empty() => name = of,
            _ => return name,
        }
    }
}

fn rust(name: &str) -> Option<String> {
    let demangled = rustc_demangle::try_demangle(name).ok()?;
    // C++ names of no parameters look the same but for the hash at the end of Rust's.
    let mut full = Limited::default();
    write!(full, "{demangled}").ok()?;
    let legacy = name.starts_with("_ZN") || name.starts_with("__ZN");
    let hashed = full.text.rsplit_once("::h").is_some_and(|(_, hash)| {
        hash.get(..16)
            .is_some_and(|hash| hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
    });
    if legacy && !hashed {
        return None;
    }
    let mut short = Limited::default();
    write!(short, "{demangled:#}").ok()?;
    Some(short.text)
}

fn cpp(name: &str) -> Option<String> {
    if !name.starts_with("_Z") {
        return None;
    }
    let depth = ParseOptions::default().recursion_limit(DEPTH_MAX);
    let symbol = Symbol::new_with_options(name, &depth).ok()?;
    let options = DemangleOptions::new()
        .no_return_type()
        .recursion_limit(DEPTH_MAX);
    let mut shown = Limited::default();
    symbol.structured_demangle(&mut shown, &options).ok()?;
    Some(shown.text)
}

/// Text up to [`NAME_MAX`]: few letters of a mangled name can stand for any number of shown ones.
#[derive(Default)]
struct Limited {
    text: String,
}

impl Write for Limited {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        if self.text.len() + part.len() > NAME_MAX {
            return Err(fmt::Error);
        }
        self.text.push_str(part);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_as_they_were_written() {
        // What `nm -C` prints for them, without the types of results and hashes.
        for (name, expected) in [
            ("PyEval_EvalCode", "PyEval_EvalCode"),
            ("unicode_decode.cold", "unicode_decode"),
            ("eq.lto_priv.0.lto_priv.0.cold", "eq"),
            ("f.part.0.constprop.12", "f"),
            (".cold", ".cold"),
            ("counter.0", "counter.0"),
            ("_start", "_start"),
            ("", ""),
            (
                "_ZNSt6vectorIiSaIiEE9push_backERKi",
                "std::vector<int, std::allocator<int> >::push_back(int const&)",
            ),
            ("_ZSt4sortIPiEvT_S1_", "std::sort<int*>(int*, int*)"),
            ("_ZN3foo3barEv.cold", "foo::bar()"),
            (
                "_ZN4core3fmt9Formatter3pad17h0123456789abcdefE",
                "core::fmt::Formatter::pad",
            ),
            ("_ZN4core3fmt9Formatter3padE", "core::fmt::Formatter::pad"),
            ("_RNvCs1234_5mylib3foo", "mylib::foo"),
            ("_Znwm", "operator new(unsigned long)"),
            ("_Znonsense", "_Znonsense"),
        ] {
            assert_eq!(demangle(name), expected, "{name}");
        }
    }

    #[test]
    fn what_grows_without_end_is_shown_as_it_stands() {
        // Each pair of the ones before: the shown name doubles with every step.
        let mut name = String::from("_Z1fP1aS_");
        name.push_str(&"SP1aS_".repeat(30));
        assert!(demangle(&name).len() <= NAME_MAX.max(name.len()));
        let mut doubled = String::from("_Z1fN1aI");
        for _ in 0..40 {
            doubled.push_str("1bIS_S_E");
        }
        assert!(demangle(&doubled).len() <= NAME_MAX);
        let long = format!("_ZN{}E", "1a".repeat(NAME_MAX));
        assert_eq!(demangle(&long), long);
    }
}
