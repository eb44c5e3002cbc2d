//! Unwind information of an ELF file, flattened: a sorted list of rows, from which offset in the file
//! on which [`Rule`](profiler_ebpf::Rule) leads from a frame to its caller. Reads `.eh_frame` alone; it
//! knows no process, and what becomes of its tables is `target`'s.

mod modules;
mod packed;
mod ranges;
mod rules;
mod table;

pub use modules::{Module, Modules};
pub use packed::Packed;
pub use ranges::Ranges;
pub use rules::Rules;
pub use table::{Refusal, Row, Table};
