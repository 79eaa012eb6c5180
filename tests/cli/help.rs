use super::{stderr, stdout, zmlx};

/// The commands that `zmlx --help` lists.
fn commands(help: &str) -> Vec<&str> {
    let rows = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let rows = rows.take_while(|line| !line.is_empty());
    let names = rows.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").collect()
}

#[test]
fn help_lists_every_command_on_stdout() {
    let output = zmlx(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = stdout(&output);
    let names = commands(&help);
    assert!(names.len() >= 7 && names.contains(&"generate"), "{names:?}");
    for name in names {
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
