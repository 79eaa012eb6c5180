//! Attention in which each batch row has keys and values of its own.

use mlx::primitives::{Precision, attention, attention_rows};
use mlx::{Array, Dtype, ops};

use crate::support::bits::{assert_lively, assert_same_bits};
use crate::support::data::Rng;
use crate::support::on_each_device;

const SCALE: f32 = 0.125;

/// Queries `[1, 6, lq, 64]`, keys and values `[1, 2, lk, 64]`.
struct Row {
    q: Array,
    k: Array,
    v: Array,
}

fn row(rng: &mut Rng, dtype: Dtype, lq: i32, lk: i32) -> Row {
    let mut part = |heads, len| rng.array(&[1, heads, len, 64], dtype, 1.3);
    Row { q: part(6, lq), k: part(2, lk), v: part(2, lk) }
}

on_each_device! {
    fn each_row_has_the_bits_that_it_has_alone() {
        let mut rng = Rng::new(107);
        for (dtype, precision) in [
            (Dtype::Bf16, Precision::Exact),
            (Dtype::F16, Precision::Exact),
            (Dtype::F32, Precision::Fast),
            (Dtype::Bf16, Precision::Fast),
        ] {
            // fast attention of one query cuts keys into parts of some 256
            for (lq, lengths) in [
                (1, &[5, 300, 1, 64][..]),
                (1, &[900, 256, 257]),
                (3, &[3, 40, 129]),
                (1, &[7, 7]),
            ] {
                let rows: Vec<Row> =
                    lengths.iter().map(|lk| row(&mut rng, dtype, lq, *lk)).collect();
                let q = ops::concatenate(rows.iter().map(|r| &r.q), 0).unwrap();
                let keys: Vec<Array> = rows.iter().map(|r| r.k.clone()).collect();
                let values: Vec<Array> = rows.iter().map(|r| r.v.clone()).collect();
                let causal = lq > 1;
                let attend = |keys: &[Array], values: &[Array], lengths: Option<&Array>| {
                    attention_rows(&q, keys, values, lengths, SCALE, causal, precision)
                };
                let Ok(got) = attend(&keys, &values, None) else {
                    assert!(mlx::default_device() == mlx::Device::Gpu, "{dtype}: refused");
                    continue;
                };
                let alone: Vec<Array> = rows
                    .iter()
                    .map(|r| attention(&r.q, &r.k, &r.v, SCALE, causal, precision).unwrap())
                    .collect();
                let alone = ops::concatenate(&alone, 0).unwrap();
                let what = format!("{dtype} {lq} {lengths:?}");
                assert_lively(&alone, &what);
                assert_same_bits(&got, &alone, &what);

                // the same keys at the front of longer buffers, whose rest must not matter
                let room = rng.array(&[1, 2, 30, 64], dtype, 1.0);
                let longer = |all: &[Array]| -> Vec<Array> {
                    all.iter().map(|a| ops::concatenate([a, &room], 2).unwrap()).collect()
                };
                let counts = Array::from_slice(lengths, &[lengths.len() as i32]).unwrap();
                let got = attend(&longer(&keys), &longer(&values), Some(&counts)).unwrap();
                assert_same_bits(&got, &alone, format!("{what}, longer buffers"));
            }
        }
    }
}

/// A number that does not fit is taken for the nearest that does: nothing outside of the keys is read.
#[test]
fn lengths_beyond_the_keys_are_taken_for_the_nearest() {
    let mut rng = Rng::new(109);
    let rows = [row(&mut rng, Dtype::Bf16, 1, 9), row(&mut rng, Dtype::Bf16, 1, 9)];
    let q = ops::concatenate(rows.iter().map(|r| &r.q), 0).unwrap();
    let attend = |lengths: [i32; 2]| {
        let lengths = Array::from_slice(&lengths, &[2]).unwrap();
        let (keys, values) = (rows.iter().map(|r| &r.k), rows.iter().map(|r| &r.v));
        attention_rows(&q, keys, values, Some(&lengths), SCALE, false, Precision::Exact)
    };
    let (Ok(wild), Ok(tame)) = (attend([i32::MAX, -5]), attend([9, 1])) else {
        assert!(mlx::build_info().primitives.is_empty());
        return;
    };
    assert_same_bits(&wild, &tame, "lengths");
}

#[test]
fn caches_that_do_not_fit_are_refused() {
    let mut rng = Rng::new(108);
    let [a, b] = [7, 9].map(|lk| row(&mut rng, Dtype::Bf16, 1, lk));
    let q = ops::concatenate([&a.q, &b.q], 0).unwrap();
    let refused = |keys: &[&Array], values: &[&Array], lengths: Option<&Array>, why: &str| {
        let (keys, values) = (keys.iter().copied(), values.iter().copied());
        let y = attention_rows(&q, keys, values, lengths, SCALE, false, Precision::Exact);
        let error = y.unwrap_err().to_string();
        assert!(error.contains(why) || error.contains("custom-primitive"), "{error}");
    };
    refused(&[], &[], None, "as many keys as values");
    refused(&[&a.k, &b.k], &[&a.v], None, "as many keys as values");
    refused(&[&a.k, &b.k, &b.k], &[&a.v, &b.v, &b.v], None, "one for each batch row");
    refused(&[&a.k, &b.k], &[&a.v, &a.v], None, "same heads and length");
    let none = ops::zeros(&[1, 2, 0, 64], Dtype::Bf16).unwrap();
    refused(&[&a.k, &none], &[&a.v, &none], None, "holds no keys");
    let one = Array::from_slice(&[7_i32], &[1]).unwrap();
    refused(&[&a.k, &b.k], &[&a.v, &b.v], Some(&one), "expected lengths [2]");
}
