//! Names for what the kernel copied.

mod python;

pub use python::Symbols;
