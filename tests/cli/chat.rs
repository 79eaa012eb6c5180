use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use pty_process::blocking::Pty;
use serde_json::{Value, json};

use super::{command, demo, lines, stderr, stdout, zmlx};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `chat` with these lines piped in.
fn piped(input: &str, arguments: &[&str]) -> std::process::Output {
    let mut child = command(&[&["chat"], arguments].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // a child that refuses does not read
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    child.wait_with_output().unwrap()
}

fn turns(output: &std::process::Output) -> Vec<Value> {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    lines(output).into_iter().filter(|line| line["type"] == "turn").collect()
}

#[test]
fn chat_piped_answers_line_by_line() {
    let output = piped("What is a shell?\n\n/help\nWhat does ls do?\n", &["-n", "6"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), 2, "{}", stdout(&output));
    let first = zmlx(&["generate", "-p", "What is a shell?", "-n", "6"]);
    assert!(stdout(&output).starts_with(&stdout(&first)), "{}", stdout(&output));
    assert!(stderr(&output).contains("/system TEXT"), "{}", stderr(&output));
}

#[test]
fn chat_json_has_a_turn_per_answer_and_sums_up() {
    let output = piped("What is a shell?\nWhy?\n", &["-n", "4", "--json"]);
    let all = lines(&output);
    assert_eq!(all[0]["type"], "begin");
    assert_eq!(all[0]["command"], "chat");
    let turns = turns(&output);
    for (index, turn) in turns.iter().enumerate() {
        assert_eq!(turn["turn"], index);
        assert_eq!(turn["token_ids"].as_array().unwrap().len(), 4);
        assert_eq!(turn["finish_reason"], "length");
    }
    assert!(turns[1]["prompt_tokens"].as_u64() > turns[0]["prompt_tokens"].as_u64());
    let summary = all.last().unwrap();
    assert_eq!((&summary["turns"], &summary["generated_tokens"]), (&json!(2), &json!(8)));
}

#[test]
fn chat_reset_and_system_change_what_the_model_gets() {
    let prompt_tokens = |input: &str| {
        let turns = turns(&piped(input, &["-n", "2", "--json"]));
        turns.last().unwrap()["prompt_tokens"].as_u64().unwrap()
    };
    let alone = prompt_tokens("Why?\n");
    assert!(prompt_tokens("What is a shell?\nWhy?\n") > alone);
    assert_eq!(prompt_tokens("What is a shell?\n/reset\nWhy?\n"), alone);
    let system = prompt_tokens("/system You are a shell.\nWhy?\n");
    assert!(system > alone);
    assert_eq!(prompt_tokens("/system You are a shell.\nYes.\n/reset\nWhy?\n"), system);
    assert_eq!(prompt_tokens("/system You are a shell.\n/system\nWhy?\n"), alone);
}

#[test]
fn chat_reads_only_what_the_cache_does_not_hold() {
    let turns =
        turns(&piped("What is a shell?\nWhy?\n/reset\nWhat is a shell?\n", &["-n", "6", "--json"]));
    let counts: Vec<_> = turns
        .iter()
        .map(|turn| ["prompt_tokens", "cached_tokens"].map(|key| turn[key].as_u64().unwrap()))
        .collect();
    let [[first, nothing], [second, of_second], [again, of_again]] = counts[..] else { panic!() };
    assert_eq!(nothing, 0);
    // the first prompt and its answer, less the answer's last token, which the model has not seen
    assert_eq!(of_second, first + 5);
    assert!(of_second < second);
    assert_eq!(again, first);
    assert_eq!(of_again, first - 1, "one token is always read");
    assert_eq!(turns[2]["token_ids"], turns[0]["token_ids"]);
}

#[test]
fn chat_stop_strings_stay_out_of_the_conversation() {
    let free = &turns(&piped("What is a shell?\n", &["-n", "8", "--json"]))[0];
    let text = free["text"].as_str().unwrap();
    let stop = text.split(' ').nth(2).unwrap();
    let output = piped("What is a shell?\n", &["-n", "8", "--json", "--stop", stop]);
    let turn = &turns(&output)[0];
    assert_eq!(turn["text"], text[..text.find(stop).unwrap()]);
    assert_eq!(turn["finish_reason"], "stop");
}

#[test]
fn chat_save_writes_the_conversation_and_nothing_over() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("talk.json");
    let save = format!("/save {}\n", file.display());
    let flags = ["-n", "3", "--system", "You are a shell."];
    let output = piped(&format!("Why?\n{save}"), &flags);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let saved: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let roles: Vec<&Value> = saved.as_array().unwrap().iter().map(|m| &m["role"]).collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
    assert_eq!(format!("{}\n", saved[2]["content"].as_str().unwrap()), stdout(&output));
    let again = piped(&save, &flags);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("talk.json: File exists"), "{}", stderr(&again));
}

#[test]
fn chat_with_a_model_that_cannot_is_refused() {
    let output = piped("Why?\n", &[super::tiny()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("tokenizer.json"), "{}", stderr(&output));
}

/// `zmlx` on a terminal of its own.
struct Terminal {
    pty: Pty,
    child: Child,
    shown: String,
    output: Receiver<Vec<u8>>,
}

impl Terminal {
    fn start(arguments: &[&str], history: &Path) -> Self {
        let (pty, pts) = pty_process::blocking::open().unwrap();
        pty.resize(pty_process::Size::new(40, 100)).unwrap();
        let mut command = command(arguments);
        command.env("TERM", "xterm").env("ZMLX_CHAT_HISTORY", history);
        // its streams are the terminal's
        let child = pty_process::blocking::Command::from(command).spawn(pts).unwrap();
        let (sender, output) = mpsc::channel();
        let mut reader = fs::File::from(pty.as_fd().try_clone_to_owned().unwrap());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // a terminal that nobody writes to any more ends with an error
            while let Ok(n @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { pty, child, shown: String::new(), output }
    }

    fn send(&mut self, keys: &str) {
        self.pty.write_all(keys.as_bytes()).unwrap();
    }

    /// Types at the prompt. What is typed before it is there gets lost.
    #[track_caller]
    fn type_line(&mut self, keys: &str) {
        self.expect("> ");
        self.send(keys);
    }

    /// Waits until `text` is shown, and forgets all up to there.
    #[track_caller]
    fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.shown.find(text) {
                let rest = self.shown.split_off(at + text.len());
                return std::mem::replace(&mut self.shown, rest);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => {
                    let shown: String = self.shown.chars().take(2000).collect();
                    panic!("`{text}` is not in: {shown:?}");
                }
            }
        }
    }

    #[track_caller]
    fn exit_code(mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("still there: {:?}", self.shown);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn generate_without_a_prompt_on_a_terminal_is_a_chat() {
    let folder = tempfile::tempdir().unwrap();
    let history = folder.path().join("state/history");
    let endless = ["--temp", "1", "--ignore-eos", "-n", "1000000"];
    let mut terminal =
        Terminal::start(&[&["generate", demo().as_str()], &endless[..]].concat(), &history);
    terminal.expect("Ctrl-D leaves");
    terminal.type_line("What is a shell?\r");
    terminal.expect("reading the prompt");
    while terminal.shown.len() < 200 {
        let more = terminal.output.recv_timeout(PATIENCE).unwrap();
        terminal.shown.push_str(&String::from_utf8_lossy(&more));
    }
    terminal.send("\x03");
    terminal.expect("cancelled]");
    // at the prompt it only clears the line
    terminal.type_line("half a line\x03");
    terminal.type_line("/help\r");
    terminal.expect("/save FILE");
    terminal.type_line("/nothing\r");
    terminal.expect("no command");
    terminal.type_line("\x04");
    assert_eq!(terminal.exit_code(), Some(0));

    // the next one remembers what was typed
    assert!(fs::read_to_string(&history).unwrap().contains("What is a shell?"));
    let mut terminal = Terminal::start(&["chat", "-n", "2"], &history);
    terminal.type_line("\x1b[A\x1b[A\x1b[A\r");
    terminal.expect("of 15 prompt tokens");
    terminal.type_line("/exit\r");
    assert_eq!(terminal.exit_code(), Some(0));
}

#[test]
fn generate_without_a_prompt_on_a_terminal_shows_the_demo() {
    let folder = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::start(&["generate", "-n", "4"], &folder.path().join("history"));
    terminal.expect("no --prompt given");
    terminal.expect("modules patched");
    assert_eq!(terminal.exit_code(), Some(0));
}

#[test]
fn a_second_interrupt_ends_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let history = folder.path().join("history");
    // stock MLX reads this for many seconds
    let system = "Why do shells have so many words to quote? ".repeat(40);
    let flags = ["chat", "--patch", "off", "--system", &system];
    let mut terminal = Terminal::start(&flags, &history);
    terminal.type_line("Why?\r");
    terminal.expect("reading the prompt");
    std::thread::sleep(Duration::from_millis(300));
    terminal.send("\x03");
    std::thread::sleep(Duration::from_millis(300));
    terminal.send("\x03");
    assert_eq!(terminal.exit_code(), Some(130));
}
