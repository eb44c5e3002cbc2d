//! The user side of pyebpf, in the order in which a sample goes through it: processes are found and
//! made known to the kernel program, whose records become samples, which are named, folded into a
//! profile and written. `ARCHITECTURE.md` follows one sample through these rooms.

pub mod cli;
pub mod preflight;

pub mod bpf;
pub mod cpython;
pub mod destination;
pub mod memory;
pub mod output;
pub mod profile;
pub mod progress;
pub mod recorder;
pub mod sample;
pub mod session;
pub mod signals;
pub mod symbolize;
pub mod tally;
pub mod target;

pub mod commands;
