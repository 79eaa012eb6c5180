//! The command line: one file per command, which returns data; `render` alone prints.

mod doctor;
mod generate;
mod inspect;
mod options;
mod place;
mod reference;
mod render;
mod shell_completions;
mod synth;
mod validate;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{ArgMatches, Args, Command};

use render::{Closed, Ui};

/// What a command came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It is done.
    Done = 0,
    /// It ran, and the answer is no.
    No = 1,
    /// It could not run.
    Failed = 2,
}

/// A row of [`COMMANDS`].
struct CommandRow {
    name: &'static str,
    about: &'static str,
    /// Adds the command's arguments.
    arguments: fn(Command) -> Command,
    run: fn(&ArgMatches, &mut Ui) -> anyhow::Result<Exit>,
}

impl CommandRow {
    const fn new<A: CommandArgs>(name: &'static str, about: &'static str) -> Self {
        Self {
            name,
            about,
            arguments: A::augment_args,
            run: |matches, ui| A::from_arg_matches(matches)?.run(ui),
        }
    }
}

/// The arguments of a command, and what it does with them.
trait CommandArgs: Args {
    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit>;
}

/// Every command there is.
const COMMANDS: &[CommandRow] = &[
    CommandRow::new::<generate::Generate>("generate", "Generate text or tokens after a prompt"),
    CommandRow::new::<validate::Validate>(
        "validate",
        "Compare the patched model with stock MLX, token by token",
    ),
    CommandRow::new::<inspect::Inspect>(
        "inspect",
        "Show a model's sizes and what patching does to each layer",
    ),
    CommandRow::new::<doctor::Doctor>("doctor", "Show what this build and this machine offer"),
    CommandRow::new::<synth::Synth>("synth", "Write a checkpoint with random weights"),
    CommandRow::new::<shell_completions::Completions>(
        "completions",
        "Print a completion script for a shell",
    ),
];

/// The whole command line, for parsing, help and completions.
fn command() -> Command {
    let mut command = Command::new("zmlx")
        .about("Mixture-of-experts models on MLX: fused decode launches, same tokens")
        .version(concat!(env!("CARGO_PKG_VERSION"), " (", env!("ZMLX_GIT_HASH"), ")"))
        .subcommand_required(true)
        .arg_required_else_help(true);
    for row in COMMANDS {
        command = command.subcommand((row.arguments)(Command::new(row.name).about(row.about)));
    }
    command
}

/// Runs the command line of the process.
pub(crate) fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    ExitCode::from(run(&arguments) as u8)
}

fn run(arguments: &[OsString]) -> Exit {
    let json = arguments.iter().any(|argument| argument == "--json");
    let mut ui = Ui::new(json);
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => return ui.usage(&error),
    };
    let Some((name, matches)) = matches.subcommand() else { return Exit::Failed };
    let Some(row) = COMMANDS.iter().find(|row| row.name == name) else { return Exit::Failed };
    match (row.run)(matches, &mut ui) {
        Ok(exit) => exit,
        // Nobody reads any more: that is the reader's choice, no failure.
        Err(error) if error.is::<Closed>() => Exit::Done,
        Err(error) => ui.error(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference for readers, which must name everything that exists.
    const DOCS: &str = include_str!("../../docs/cli.md");

    #[test]
    fn every_command_and_option_is_sound_and_documented() {
        command().debug_assert();
        for command in command().get_subcommands() {
            let heading = format!("## zmlx {}", command.get_name());
            assert!(DOCS.contains(&heading), "docs/cli.md lacks `{heading}`");
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{}: {}",
                    command.get_name(),
                    argument.get_id()
                );
                if let Some(long) = argument.get_long() {
                    assert!(DOCS.contains(&format!("--{long}")), "docs/cli.md lacks --{long}");
                }
            }
        }
    }

    #[test]
    fn every_command_that_answers_has_json() {
        for command in command().get_subcommands().filter(|c| c.get_name() != "completions") {
            let mut arguments = command.get_arguments();
            assert!(arguments.any(|a| a.get_long() == Some("json")), "{}", command.get_name());
        }
    }
}
