//! `pyebpf doctor`: what the machine, this user and single processes have and lack.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};

use crate::{
    cli::DoctorArgs,
    doctor::{Report, machine, process},
};

/// Prints the report to stdout; the exit code is 1 when something that is needed is missing.
///
/// # Errors
/// When the facts can't be had or stdout can't be written to, other than because its reader has gone.
pub fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let processes = args.pids.iter().map(|&pid| process::look(pid)).collect();
    let report = Report::new(machine::look()?, processes);
    let text = if args.json {
        serde_json::to_string_pretty(&report).context("the report is no JSON")? + "\n"
    } else {
        report.text()
    };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    Ok(if report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
