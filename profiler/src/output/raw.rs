//! Collapsed stacks: `root;caller;callee 12`, a line per distinct stack with its samples, sorted.
//! The input of flamegraph.pl, inferno, speedscope and grep.

use std::io::Write;

use super::label_tree::LabelTree;
use crate::profile::Profile;

/// Writes the profile as collapsed stacks; an empty profile is an empty file.
pub fn write(profile: &Profile, out: &mut dyn Write) -> anyhow::Result<()> {
    LabelTree::new(profile).lines(0, |stack, samples| writeln!(out, "{stack} {samples}"))?;
    Ok(())
}
