//! The user side of pyebpf, in the order in which a sample goes through it: processes are found and
//! made known to the kernel program, whose records become samples, which are named, folded into a
//! profile and written. `ARCHITECTURE.md` follows one sample through these rooms.

// They panic where they can't write: `talk::say` does not.
#![warn(clippy::print_stderr, clippy::print_stdout)]

// What the user asks for, and whether this machine can give it.
pub mod cli;
pub mod preflight;

// How a process's memory is read, and what a CPython looks like in it.
pub mod memory;

pub mod cpython;

// How native code gets from a frame to its caller.
pub mod unwind;

// The kernel program: loaded, told what to do, read from.
pub mod bpf;

// Which processes are profiled.
pub mod target;

// A record of the kernel, decoded: still numbers.
pub mod sample;

// Numbers to names.
pub mod symbolize;

// Equal stacks counted together.
pub mod profile;

// A file per format, and where it is written.
pub mod output;

pub mod destination;

// The loop that takes samples from one room to the next, what it listens to, and what it says.
pub mod session;

pub mod signals;

pub mod recorder;

pub mod tally;

pub mod progress;

pub mod talk;

// The parsers of foreign bytes, for fuzzers.
#[doc(hidden)]
pub mod fuzz;

// What a person asks when it does not work, or before.
pub mod doctor;

// All of this all the time, for every container of a node.
pub mod agent;

// A file per verb, which puts the rooms together.
pub mod commands;
