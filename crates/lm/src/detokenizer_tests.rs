use proptest::prelude::*;

use crate::tokenizer::Tokenizer;
use crate::tokenizer::tests::{byte_level, spm, word_piece};

use super::*;

/// Feeds the ids one by one; checks that every piece stands alone as text.
fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut detokenizer = tokenizer.detokenizer();
    let mut text = String::new();
    for id in ids {
        text.push_str(&detokenizer.push(*id).expect("push"));
    }
    text.push_str(&detokenizer.finish().expect("finish"));
    text
}

#[test]
fn byte_alphabet_is_a_bijection_onto_all_bytes() {
    let mut bytes: Vec<u8> = (0..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
    bytes.sort_unstable();
    assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
}

#[test]
fn push_holds_back_half_a_character() {
    let (_folder, tokenizer) = byte_level();
    let ids = tokenizer.encode("a€𝄞", false).expect("encode");
    assert_eq!(ids.len(), 8, "one token per byte");
    let mut detokenizer = tokenizer.detokenizer();
    let pieces: Vec<String> = ids.iter().map(|id| detokenizer.push(*id).expect("push")).collect();
    assert_eq!(pieces, ["a", "", "", "€", "", "", "", "𝄞"]);
    assert_eq!(detokenizer.finish().expect("finish"), "");
}

#[test]
fn finish_replaces_an_incomplete_character() {
    let (_folder, tokenizer) = byte_level();
    let ids = tokenizer.encode("x€", false).expect("encode");
    assert_eq!(stream(&tokenizer, &ids[..3]), "x\u{fffd}");
    assert_eq!(tokenizer.decode(&ids[..3]).expect("decode"), "x\u{fffd}");
}

#[test]
fn push_of_an_id_outside_the_vocabulary_yields_nothing() {
    for (_folder, tokenizer) in [byte_level(), spm(), word_piece()] {
        assert_eq!(stream(&tokenizer, &[999_999, u32::MAX]), "");
    }
}

#[test]
fn window_holds_back_what_a_decoder_may_still_change() {
    let (_folder, tokenizer) = word_piece();
    let ids = tokenizer.encode("hello world", false).expect("encode");
    assert_eq!(stream(&tokenizer, &ids), tokenizer.decode(&ids).expect("decode"));
}

proptest! {
    #[test]
    fn pieces_equal_full_decode_for_random_ids(ids in proptest::collection::vec(0u32..300, 0..40)) {
        for (_folder, tokenizer) in [byte_level(), spm()] {
            prop_assert_eq!(stream(&tokenizer, &ids), tokenizer.decode(&ids).expect("decode"));
        }
    }

    #[test]
    fn pieces_equal_full_decode_for_any_text(text in "\\PC{0,24}") {
        for (_folder, tokenizer) in [byte_level(), spm()] {
            let ids = tokenizer.encode(&text, false).expect("encode");
            prop_assert_eq!(stream(&tokenizer, &ids), tokenizer.decode(&ids).expect("decode"));
        }
    }

    #[test]
    fn byte_level_text_survives_the_round_trip(text in "\\PC{0,24}") {
        let (_folder, tokenizer) = byte_level();
        let ids = tokenizer.encode(&text, false).expect("encode");
        prop_assert_eq!(stream(&tokenizer, &ids), text);
    }
}
