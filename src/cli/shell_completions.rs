//! `zmlx completions`

use clap_complete::Shell;

use super::render::Ui;
use super::{CommandArgs, Exit, command};

/// Arguments of `zmlx completions`.
#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// Shell to complete in
    shell: Shell,
}

impl CommandArgs for Completions {
    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command(), "zmlx", &mut script);
        ui.script(&script)?;
        Ok(Exit::Done)
    }
}
