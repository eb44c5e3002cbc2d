//! One file per verb: wiring, no work of its own.

pub mod completions;
pub mod daemon;
pub mod doctor;
pub mod record;
