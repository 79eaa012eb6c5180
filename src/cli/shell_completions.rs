//! `zmlx completions`

use clap_complete::Shell;

use super::render::Ui;
use super::{CommandArgs, Examples, Exit, command};

/// Arguments of `zmlx completions`.
#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// Shell to complete in
    shell: Shell,
}

impl CommandArgs for Completions {
    const ABOUT: &'static str = "Print a completion script for a shell";
    const EXAMPLES: Examples = &[
        ("For bash", "zmlx completions bash > ~/.local/share/bash-completion/completions/zmlx"),
        ("For fish", "zmlx completions fish > ~/.config/fish/completions/zmlx.fish"),
    ];

    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command(), "zmlx", &mut script);
        ui.script(&script)?;
        Ok(Exit::Done)
    }
}
