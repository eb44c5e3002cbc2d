//! Profiles on their way to where the user wants them: a folder, or stores of continuous profiles.

pub mod settings;
pub mod state;
