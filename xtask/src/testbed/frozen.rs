//! `known_stack.py` as programs without a Python to start: `frozen/pyinstaller/known_stack`, one file
//! that unpacks itself, and `frozen/nuitka/known_stack.bin`, compiled and linked with libpython.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::greenlets::pyenv;
use crate::apt::Apt;
use crate::process::{quietly, say};

/// The minor versions that they are made with: the first that is here.
const MINORS: [u32; 5] = [12, 11, 13, 10, 9];

/// The tools, the module that runs each, the options with which it makes its program where it is run,
/// and the program.
const TOOLS: [(&str, &str, &[&str], &str); 2] = [
    (
        "pyinstaller",
        "PyInstaller",
        &["--onefile", "--log-level=ERROR", "--distpath=."],
        "known_stack",
    ),
    (
        "nuitka",
        "nuitka",
        &[
            "--static-libpython=no",
            "--nofollow-imports",
            "--remove-output",
            "--output-dir=.",
        ],
        "known_stack.bin",
    ),
];

/// Makes those that are not there, or were made of another text.
pub(super) fn prepare(cache: &Path, _apt: &mut Apt) -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python/known_stack.py");
    let text = fs::read(&script).with_context(|| format!("cannot read {}", script.display()))?;
    for (package, module, options, program) in TOOLS {
        let folder = cache.join("frozen").join(package);
        let source = folder.join("known_stack.py");
        let same = fs::read(&source).is_ok_and(|made_of| made_of == text);
        if same && folder.join(program).is_file() {
            continue;
        }
        let mut pythons = MINORS.into_iter().filter_map(pyenv);
        let python = pythons.next().context("there is no Python of pyenv")?;
        let tools = folder.join("tools");
        if !tools.is_dir() {
            say(&format!("installing {package} for tests"));
            let mut install = Command::new(&python);
            install.args(["-m", "pip", "install", "--quiet", "--target"]);
            quietly(install.arg(&tools).arg(package))?;
        }
        say(&format!("making a program with {package}, half a minute"));
        fs::write(&source, &text)?;
        let mut make = Command::new(&python);
        make.current_dir(&folder).env("PYTHONPATH", &tools);
        make.args(["-m", module]).args(options);
        if let Err(error) = quietly(make.arg(&source)) {
            // So that it is tried again.
            fs::remove_file(&source)?;
            return Err(error);
        }
    }
    Ok(())
}
