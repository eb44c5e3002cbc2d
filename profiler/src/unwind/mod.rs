//! Unwind information of an ELF file, flattened: a sorted list of rows, from which offset in the file
//! on which [`Rule`](profiler_ebpf::Rule) leads from a frame to its caller. Reads `.eh_frame` alone; it
//! knows no process, and where rows are kept is `target`'s.

mod rules;
mod table;

pub use rules::Rules;
pub use table::{Row, Table};
