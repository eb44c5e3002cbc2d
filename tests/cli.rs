//! Runs the built binary with bad input and checks what it says.
