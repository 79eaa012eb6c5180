//! The command line: one file per command, which returns data and says how it reads; `render` alone prints.

mod bench;
mod bench_run;
mod cache_prompt;
mod chat;
mod convert;
mod doctor;
mod fold;
mod generate;
mod inspect;
mod kv;
mod lines;
mod logits;
mod options;
mod patching;
mod patterns;
mod place;
mod prompts;
mod reference;
mod render;
mod report;
mod sampling;
mod session;
mod shell_completions;
mod synth;
mod validate;

use std::ffi::OsString;

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
    /// The command with its arguments and help.
    build: fn(&'static str) -> Command,
    run: fn(&ArgMatches, &mut Ui) -> anyhow::Result<Exit>,
}

impl CommandRow {
    const fn new<A: CommandArgs>(name: &'static str) -> Self {
        Self {
            name,
            // The arguments' own docs are for readers of the code: the texts come after them.
            build: |name| {
                let command = A::augment_args(Command::new(name)).about(A::ABOUT).long_about(None);
                with_examples(command, A::EXAMPLES)
            },
            run: |matches, ui| A::from_arg_matches(matches)?.run(ui),
        }
    }
}

/// The arguments of a command, and what it does with them.
trait CommandArgs: Args {
    /// What it does, in one line.
    const ABOUT: &'static str;
    /// What one may want, and how to type it.
    const EXAMPLES: Examples;

    fn run(self, ui: &mut Ui) -> anyhow::Result<Exit>;
}

type Examples = &'static [(&'static str, &'static str)];

/// Every command there is.
const COMMANDS: &[CommandRow] = &[
    CommandRow::new::<generate::Generate>("generate"),
    CommandRow::new::<chat::Chat>("chat"),
    CommandRow::new::<cache_prompt::CachePrompt>("cache-prompt"),
    CommandRow::new::<validate::Validate>("validate"),
    CommandRow::new::<bench::Bench>("bench"),
    CommandRow::new::<report::Report>("report"),
    CommandRow::new::<inspect::Inspect>("inspect"),
    CommandRow::new::<convert::Convert>("convert"),
    CommandRow::new::<patterns::Patterns>("patterns"),
    CommandRow::new::<doctor::Doctor>("doctor"),
    CommandRow::new::<synth::Synth>("synth"),
    CommandRow::new::<shell_completions::Completions>("completions"),
];

/// Shown by `zmlx --help`.
const EXAMPLES: Examples = &[
    ("Ask the model that comes with zmlx", "zmlx generate -p \"What does ls do?\""),
    ("Talk to a model", "zmlx chat mlx-community/Qwen3-30B-A3B-4bit"),
    ("Prove that patching changes no token", "zmlx validate mlx-community/Qwen3-30B-A3B-4bit"),
    ("Measure what patching gains, and show it", "zmlx bench -o x.json"),
    ("See what runs fused on this machine, and why the rest does not", "zmlx doctor"),
];

/// Widest help, however wide the terminal is.
const HELP_COLUMNS: usize = 100;

/// The whole command line, for parsing, help and completions.
fn command() -> Command {
    let command = Command::new("zmlx")
        .about("Mixture-of-experts models on MLX: fused decode launches, same tokens")
        .version(concat!(env!("CARGO_PKG_VERSION"), " (", env!("ZMLX_GIT_HASH"), ")"))
        .max_term_width(HELP_COLUMNS)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(COMMANDS.iter().map(|row| (row.build)(row.name)));
    with_examples(command, EXAMPLES)
}

fn with_examples(command: Command, examples: Examples) -> Command {
    let header = *command.get_styles().get_header();
    let mut text = format!("{header}Examples:{header:#}");
    for (what, how) in examples {
        text.push_str(&format!("\n  {what}:\n      {how}"));
    }
    command.after_help(text)
}

/// Runs the command line of the process, and ends it.
pub(crate) fn main() -> ! {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    zmlx::mlx::exit(run(&arguments) as u8)
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

    /// What the reference says about a command.
    fn section(name: &str) -> &'static str {
        let heading = format!("\n## zmlx {name}\n");
        let start = DOCS.find(&heading).unwrap_or_else(|| panic!("docs/cli.md lacks {heading:?}"));
        let section = &DOCS[start + heading.len()..];
        section.find("\n## ").map_or(section, |end| &section[..end])
    }

    #[test]
    fn every_command_and_option_is_sound_and_documented() {
        command().debug_assert();
        for command in command().get_subcommands() {
            let name = command.get_name();
            let section = section(name);
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{name}: {}", argument.get_id());
                let long = argument.get_long().map(|long| format!("`--{long}"));
                let short = argument.get_short().map(|short| format!("`-{short}`"));
                for option in [long, short].into_iter().flatten() {
                    assert!(section.contains(&option), "docs/cli.md: {name} lacks {option}");
                }
            }
        }
    }

    #[test]
    fn the_documents_name_no_option_that_is_gone() {
        for command in command().get_subcommands() {
            let known: Vec<&str> = command.get_arguments().filter_map(|a| a.get_long()).collect();
            let section = section(command.get_name());
            for option in section.split("`--").skip(1) {
                let end = option.find(|c: char| c != '-' && !c.is_ascii_lowercase());
                let option = &option[..end.unwrap_or(option.len())];
                assert!(known.contains(&option), "{}: --{option}", command.get_name());
            }
        }
    }

    #[test]
    fn every_help_has_a_description_headings_and_examples_and_fits() {
        for mut command in command().get_subcommands().cloned() {
            let name = command.get_name().to_owned();
            let help = command.render_help().to_string();
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with(&about) && about.len() > 20, "{help}");
            assert!(!about.contains("Arguments of"), "{name}: {about}");
            assert!(help.contains("Examples:\n") && help.contains("      zmlx"), "{help}");
            assert!(help.lines().all(|line| line.chars().count() <= HELP_COLUMNS), "{help}");
            let options = command.get_arguments().filter(|a| a.get_long().is_some());
            for argument in options.filter(|a| a.get_id() != "help") {
                assert!(argument.get_help_heading().is_some(), "{name}: {}", argument.get_id());
            }
        }
        let help = super::command().render_help().to_string();
        assert!(help.contains("fused decode launches") && help.contains("Examples:\n"), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= HELP_COLUMNS), "{help}");
    }

    #[test]
    fn every_example_parses() {
        let rows = COMMANDS.iter().map(|row| (row.build)(row.name));
        for mut command in rows.chain([super::command()]) {
            let help = command.render_help().to_string();
            let examples = help.split_once("Examples:\n").expect("examples").1;
            for line in examples.lines().filter_map(|line| line.strip_prefix("      ")) {
                let line = line.split(" | ").next().unwrap_or(line);
                let line = line.split(['<', '>']).next().unwrap_or(line);
                // quoted text is one word
                let parts = line.split('"').enumerate();
                let words: String = parts
                    .map(|(i, part)| if i % 2 == 1 { part.replace(' ', "_") } else { part.into() })
                    .collect();
                let words = words.split_whitespace().skip_while(|word| *word != "zmlx");
                let words: Vec<&str> = words.collect();
                if let Err(error) = super::command().try_get_matches_from(&words) {
                    panic!("{words:?}: {error}");
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
