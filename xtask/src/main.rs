//! `cargo xtask TASK`: the chores of this repository. One file per task; this one only dispatches.

mod apt;
mod bench;
mod ci;
mod fuzz;
mod install;
mod layouts;
mod matrix;
mod process;
mod run;
mod setup;
mod test;
mod testbed;
mod toolchain;
mod unwind;
mod vm;

use std::process::ExitCode;

use clap::Parser;

/// The chores of this repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Install or find what building the eBPF program needs.
    Setup(setup::Args),
    /// Set up, build, and run pyebpf as root with the arguments that follow.
    Run(run::Args),
    /// Set up, then run every test, live ones as root; the arguments go to `cargo test`.
    Test(test::Args),
    /// Build and install pyebpf and its shell completions where sudo finds them.
    Install(install::Args),
    /// Measure what pyebpf costs, beside py-spy and perf.
    Bench(bench::Args),
    /// Watch the node agent for an hour of containers that come and go.
    Soak(bench::soak::Args),
    /// Measure CPython's structures with the headers of the installed Pythons.
    Layouts(layouts::Args),
    /// Try every Python that is here, started in every way, and print the table.
    Matrix(matrix::Args),
    /// Look for inputs that break the parsers of foreign bytes.
    Fuzz(fuzz::Args),
    /// Run pyebpf under other kernels, in virtual machines.
    Vm(vm::Args),
    /// Compare native stacks of many programs with framehop's and gdb's; measure unwind tables.
    Unwind(unwind::Args),
    /// What continuous integration runs: format, lints, tests, two other kernels.
    Ci,
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Setup(args) => setup::run(&args),
        Task::Run(args) => run::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Install(args) => install::run(&args),
        Task::Layouts(args) => layouts::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Soak(args) => bench::soak::run(&args),
        Task::Matrix(args) => matrix::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Vm(args) => vm::run(&args),
        Task::Unwind(args) => unwind::run(&args),
        Task::Ci => ci::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
