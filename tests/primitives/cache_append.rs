//! `cache_append` against a slice and a `slice_update`.

use mlx::primitives::{CacheAppend, Precision, cache_append};
use mlx::{Array, Dtype, ops};

use super::fused;
use crate::support::bits::{assert_lively, assert_same_bits};
use crate::support::data::{self, DTYPES, Rng};
use crate::support::on_each_device;

const HEADS: i32 = 3;
const WIDTH: i32 = 10;

fn buffer(rng: &mut Rng, tokens: i32, dtype: Dtype) -> Array {
    rng.array(&[1, HEADS, tokens, WIDTH], dtype, 1.0)
}

fn stock(buffer: &Array, tokens: &Array, row: i32, length: i32) -> Array {
    let row = ops::slice_axis(tokens, 0, row, row + 1).unwrap();
    let start = length - tokens.dim(2);
    ops::slice_update(buffer, &row, &[0, 0, start, 0], &[1, HEADS, length, WIDTH]).unwrap()
}

fn counts(lengths: &[i32]) -> Array {
    Array::from_slice(lengths, &[lengths.len() as i32]).unwrap()
}

on_each_device! {
    fn each_rows_buffer_has_the_stock_bits() {
        let mut rng = Rng::new(311);
        for dtype in DTYPES {
            if !fused(&CacheAppend, dtype, Precision::Exact) { continue; }
            for l in [1, 4] {
                let lengths = [4, 9, 30];
                let dense = rng.array(&[3, HEADS, l, WIDTH], dtype, 1.0);
                // as a projection leaves them: heads behind tokens
                let heads_last = rng.array(&[3, l, HEADS, WIDTH], dtype, 1.0);
                let heads_last = heads_last.transpose(&[0, 2, 1, 3]).unwrap();
                for (layout, tokens) in
                    [("dense", &dense), ("heads last", &heads_last), ("strided", &data::strided(&dense))]
                {
                    for (row, room) in (0..).zip([4, 16, 30]) {
                        let held = buffer(&mut rng, room, dtype);
                        let what = format!("{dtype}, {layout}, {l} tokens, row {row}");
                        let expected = stock(&held, tokens, row, lengths[row as usize]);
                        assert_lively(&expected, &what);
                        for held in [data::strided(&held), held] {
                            let got = cache_append(&held, tokens, row, &counts(&lengths)).unwrap();
                            assert_same_bits(&got, &expected, &what);
                        }
                    }
                }
            }
        }
    }
}

on_each_device! {
    fn steps_follow_each_other() {
        if !fused(&CacheAppend, Dtype::F32, Precision::Exact) { return; }
        let mut rng = Rng::new(312);
        let mut held = buffer(&mut rng, 64, Dtype::F32);
        let mut expected = held.clone();
        for step in 1..=8 {
            let tokens = rng.array(&[2, HEADS, 1, WIDTH], Dtype::F32, 1.0);
            held = cache_append(&held, &tokens, 1, &counts(&[step, 64 - step])).unwrap();
            expected = stock(&expected, &tokens, 1, 64 - step);
            if step % 3 == 0 {
                mlx::eval([&held]).unwrap();
            }
        }
        assert_same_bits(&held, &expected, "eight steps");
    }
}

on_each_device! {
    fn a_snapshot_keeps_its_tokens() {
        if !fused(&CacheAppend, Dtype::F32, Precision::Exact) { return; }
        let mut rng = Rng::new(313);
        let held = buffer(&mut rng, 8, Dtype::F32);
        let before = held.to_vec::<f32>().unwrap();
        let tokens = rng.array(&[1, HEADS, 1, WIDTH], Dtype::F32, 1.0);
        let got = cache_append(&held, &tokens, 0, &counts(&[3])).unwrap();
        assert_ne!(got.to_vec::<f32>().unwrap(), before);
        assert_eq!(held.to_vec::<f32>().unwrap(), before);
    }
}

on_each_device! {
    fn lengths_outside_the_buffer_stay_inside() {
        if !fused(&CacheAppend, Dtype::F32, Precision::Exact) { return; }
        let mut rng = Rng::new(314);
        let held = buffer(&mut rng, 8, Dtype::F32);
        let tokens = rng.array(&[1, HEADS, 2, WIDTH], Dtype::F32, 1.0);
        for (length, nearest) in [(i32::MIN, 2), (0, 2), (9, 8), (i32::MAX, 8)] {
            let got = cache_append(&held, &tokens, 0, &counts(&[length])).unwrap();
            assert_same_bits(&got, &stock(&held, &tokens, 0, nearest), format!("{length}"));
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut rng = Rng::new(315);
    let held = buffer(&mut rng, 4, Dtype::F32);
    let mut tokens = |rows, l, width| rng.array(&[rows, HEADS, l, width], Dtype::F32, 1.0);
    for (tokens, row, counts) in [
        (tokens(1, 5, WIDTH), 0, counts(&[1])),
        (tokens(1, 1, WIDTH + 1), 0, counts(&[1])),
        (tokens(2, 1, WIDTH), 2, counts(&[1, 1])),
        (tokens(2, 1, WIDTH), -1, counts(&[1, 1])),
        (tokens(2, 1, WIDTH), 0, counts(&[1])),
    ] {
        assert!(cache_append(&held, &tokens, row, &counts).is_err());
    }
}
