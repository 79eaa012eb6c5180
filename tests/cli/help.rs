use super::{stderr, stdout, zmlx};

const COMMANDS: [&str; 7] =
    ["generate", "chat", "validate", "inspect", "doctor", "synth", "completions"];

#[test]
fn help_lists_every_command_on_stdout() {
    let output = zmlx(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    for name in COMMANDS {
        assert!(stdout(&output).contains(name), "{name}");
        let output = zmlx(&[name, "--help"]);
        assert_eq!(output.status.code(), Some(0), "{name}");
        assert!(stdout(&output).contains("Usage: zmlx"), "{name}");
        assert!(output.stderr.is_empty(), "{name}");
        assert_eq!(stdout(&output), stdout(&zmlx(&[name, "-h"])), "{name}: one layout");
    }
}

#[test]
fn version_names_release_and_commit() {
    let output = zmlx(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).starts_with(concat!("zmlx ", env!("CARGO_PKG_VERSION"), " (")));
}

#[test]
fn no_command_explains_itself_and_fails() {
    let output = zmlx(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    assert!(stderr(&output).contains("Usage: zmlx"));
}

#[test]
fn completions_are_written_for_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = zmlx(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(stdout(&output).contains("validate"), "{shell}");
    }
}
