//! What is said to the user, on stderr. Nothing of it is data: where it can't be written, the recording,
//! its output and the exit code are as they would be.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

/// Says it in a line of its own. Unlike `eprintln!`, which panics there, it says nothing where stderr is
/// full or nobody reads it.
pub fn say(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}
