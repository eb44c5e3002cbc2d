//! The user side of pyebpf, in the order in which a sample goes through it.

pub mod output;
pub mod cpython;
pub mod memory;
pub mod profile;
