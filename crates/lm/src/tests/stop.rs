//! Text up to a stop string.

use std::path::Path;

use proptest::prelude::*;

use crate::error::Error;
use crate::generate::Token;
use crate::stop::{StopStrings, TextStream};
use crate::tokenizer::Tokenizer;

fn stops(strings: &[&str]) -> Vec<String> {
    strings.iter().map(|s| (*s).to_owned()).collect()
}

/// What comes out of `pieces`, and what ended it.
fn through(strings: &[&str], pieces: &[&str]) -> (String, Option<String>) {
    let mut stop = StopStrings::new(&stops(strings)).unwrap();
    let mut text: String = pieces.iter().map(|piece| stop.push(piece)).collect();
    text.push_str(&stop.finish());
    (text, stop.found().map(str::to_owned))
}

#[test]
fn stop_string_across_pieces_ends_the_text_before_it() {
    for pieces in [&["one END two"][..], &["one E", "ND", " two"], &["one ", "E", "N", "D", "x"]] {
        assert_eq!(through(&["END"], pieces), ("one ".into(), Some("END".into())), "{pieces:?}");
    }
}

#[test]
fn what_only_began_like_a_stop_string_comes_out() {
    assert_eq!(through(&["END"], &["one E", "N", "ough"]), ("one ENough".into(), None));
    assert_eq!(through(&["END"], &["one EN"]), ("one EN".into(), None));
    assert_eq!(through(&["aab"], &["a", "a", "a", "b", "c"]), ("a".into(), Some("aab".into())));
    assert_eq!(through(&[], &["all", " of it"]), ("all of it".into(), None));
}

#[test]
fn first_of_several_to_be_complete_ends_it() {
    let both = ["\n\n", "User:"];
    assert_eq!(through(&both, &["a\nUs", "er: b\n\n"]), ("a\n".into(), Some("User:".into())));
    assert_eq!(through(&both, &["a\n", "\nUser:"]), ("a".into(), Some("\n\n".into())));
    assert_eq!(through(&["abcd", "bc"], &["ab", "cd"]), ("a".into(), Some("bc".into())));
}

#[test]
fn characters_of_several_bytes_are_never_cut() {
    assert_eq!(through(&["ßé"], &["größ", "e ß", "é"]), ("größe ".into(), Some("ßé".into())));
}

#[test]
fn empty_stop_string_is_refused() {
    let error = StopStrings::new(&stops(&["a", ""])).unwrap_err();
    assert!(matches!(error, Error::Argument { name: "stop string", .. }), "{error}");
}

proptest! {
    #[test]
    fn pieces_make_no_difference(text in "[abß]{0,24}", cuts in prop::collection::vec(0_usize..24, 0..8),
                                 strings in prop::collection::vec("[abß]{1,4}", 0..3)) {
        let strings: Vec<&str> = strings.iter().map(String::as_str).collect();
        let letters: Vec<char> = text.chars().collect();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(letters.len())).collect();
        cuts.extend([0, letters.len()]);
        cuts.sort_unstable();
        let pieces: Vec<String> = cuts.windows(2).map(|w| letters[w[0]..w[1]].iter().collect()).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let (out, found) = through(&strings, &pieces);
        prop_assert_eq!(through(&strings, &[&text]), (out.clone(), found.clone()));
        prop_assert!(!strings.iter().any(|s| out.contains(s)));
        match found {
            Some(found) => prop_assert!(text.strip_prefix(&out).is_some_and(|t| t.starts_with(&found))),
            None => prop_assert_eq!(out, text),
        }
    }
}

#[test]
fn stream_of_tokens_stops_in_the_middle_of_a_token() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let tokenizer = Tokenizer::load(&folder).unwrap();
    let text = "The shell reads commands from a file or from the terminal. Größe 漢字.";
    let ids = tokenizer.encode(text, false).unwrap();
    let run = |strings: &[&str]| {
        let mut stream = TextStream::new(&tokenizer, &stops(strings)).unwrap();
        let mut out = String::new();
        for (index, id) in ids.iter().enumerate() {
            out.push_str(&stream.push(Token { id: *id, index, is_eos: false }).unwrap());
        }
        let eos = Token { id: 0, index: ids.len(), is_eos: true };
        assert_eq!(stream.push(eos).unwrap(), "");
        let stopped = stream.stopped().map(str::to_owned);
        out.push_str(&stream.finish().unwrap());
        (out, stopped)
    };
    assert_eq!(run(&[]), (text.to_owned(), None));
    let stop = "mands fr";
    let before = &text[..text.find(stop).unwrap()];
    assert_eq!(run(&["漢", stop]), (before.to_owned(), Some(stop.to_owned())));
    assert_eq!(run(&["漢"]).1.as_deref(), Some("漢"));
}
