//! Names of functions of the kernel.

pub mod kallsyms;
