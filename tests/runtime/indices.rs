//! Indices that do not fit are refused, and those that are known to fit cost nothing.

use mlx::primitives::{Scoring, greedy_token};
use mlx::quantization::{Quantization, gather_mm, gather_qmm};
use mlx::{Array, Dtype, Error, Result, fast, ops, random};

use crate::support::bits::{as_f32, assert_close};
use crate::support::data::{self, Rng, array};
use crate::support::route::route;

/// The same indices, once computed and once not.
fn both(indices: &[i32]) -> [Array; 2] {
    let known = array(indices, &[1, indices.len() as i32]);
    let later = known.astype(Dtype::F32).unwrap().astype(Dtype::I32).unwrap();
    assert!(!later.is_available() && later.known_within().is_none());
    [known, later]
}

#[track_caller]
fn refused(outcome: Result<Array>, words: &[&str]) {
    let error = match outcome {
        Ok(a) => panic!("expected a refusal, got {a:?}"),
        Err(error) => error,
    };
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error:?}");
    for word in words {
        assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
    }
}

#[test]
fn indices_beyond_an_axis_are_refused_by_every_function_that_takes_them() {
    let mut rng = Rng::new(11);
    let a = rng.array(&[1, 4], Dtype::F32, 1.0);
    let stack = rng.array(&[4, 2, 3], Dtype::F32, 1.0);
    let x = rng.array(&[1, 1, 2], Dtype::F32, 1.0);
    let experts = rng.experts([4, 8, 32], Quantization::affine(32, 4), Dtype::F32, true);
    let wide = rng.array(&[1, 1, 32], Dtype::F32, 1.0);
    for bad in [4, 1 << 30, -5, i32::MIN] {
        for indices in both(&[0, bad]) {
            let text = bad.to_string();
            refused(ops::take(&a, &indices, 1), &["[take]", &text, "-4 to 3"]);
            refused(ops::take_along_axis(&a, &indices, -1), &["[take_along_axis]", &text]);
            refused(ops::put_along_axis(&a, &indices, &a, 1), &["[put_along_axis]", &text]);
        }
    }
    // Matrices are not counted from the end.
    for bad in [4, 1 << 30, -1] {
        for indices in both(&[0, bad]) {
            let text = bad.to_string();
            let rhs = Some(&indices);
            refused(gather_mm(&x, &stack, None, rhs, false), &["[gather_mm] rhs_indices", &text]);
            refused(gather_qmm(&wide, &experts, None, rhs, true, false), &["[gather_qmm]", &text]);
        }
    }
    for indices in both(&[0, 1]) {
        let lhs = Some(&indices);
        refused(gather_mm(&x, &stack, lhs, None, false), &["lhs_indices"]);
        refused(gather_qmm(&wide, &experts, lhs, None, true, false), &["lhs_indices"]);
    }
}

#[test]
fn slices_at_positions_beyond_the_array_are_refused() {
    let a = Rng::new(12).array(&[4, 6], Dtype::F32, 1.0);
    let update = ops::zeros(&[2, 3], Dtype::F32).unwrap();
    let later = |v: &[i32]| {
        let v = array(v, &[v.len() as i32]).astype(Dtype::F32).unwrap();
        v.astype(Dtype::I32).unwrap()
    };
    for (start, fits) in
        [([0, 0], true), ([2, 3], true), ([3, 0], false), ([0, 4], false), ([-1, 0], false)]
    {
        for start in [array(&start, &[2]), later(&start)] {
            let cut = ops::slice_dynamic(&a, &start, &[0, 1], &[2, 3]);
            let written = ops::slice_update_dynamic(&a, &update, &start, &[0, 1]);
            if fits {
                let at = start.to_vec::<i32>().unwrap();
                let expected = ops::slice(&a, &at, &[at[0] + 2, at[1] + 3]).unwrap();
                assert_eq!(as_f32(&cut.unwrap()), as_f32(&expected));
                assert_eq!(written.unwrap().shape(), [4, 6]);
            } else {
                refused(cut, &["[slice_dynamic]", "along axis"]);
                refused(written, &["[slice_update_dynamic]", "along axis"]);
            }
        }
    }
    // MLX reads starts one after the other whatever their strides.
    let strided = data::strided(&array(&[1, 2], &[2]));
    let cut = ops::slice_dynamic(&a, &strided, &[0, 1], &[2, 3]).unwrap();
    assert_eq!(as_f32(&cut), as_f32(&ops::slice(&a, &[1, 2], &[3, 5]).unwrap()));
    let cube = ops::zeros(&[1, 2, 3], Dtype::F32).unwrap();
    assert!(ops::slice_update_dynamic(&a, &cube, &array(&[0], &[1]), &[0]).is_err());
    assert!(ops::slice_dynamic(&a, &array(&[0], &[1]), &[0], &[-1, 3]).is_err());
}

#[test]
fn negative_indices_count_from_the_end() {
    let a = array(&[10f32, 11.0, 12.0, 13.0], &[1, 4]);
    for indices in both(&[-1, -4, 3]) {
        let taken = ops::take(&a, &indices, 1).unwrap();
        assert_eq!(as_f32(&taken), [13.0, 10.0, 13.0]);
        let taken = ops::take_along_axis(&a, &indices, 1).unwrap();
        assert_eq!(as_f32(&taken), [13.0, 10.0, 13.0]);
    }
}

/// What decoding and routing index with: known to fit, so never waited for.
#[test]
fn indices_that_an_op_made_are_not_computed_by_the_call() {
    let mut rng = Rng::new(13);
    let n = 16;
    let logits = rng.array(&[2, n], Dtype::F32, 1.0);
    let table = rng.array(&[n, 8], Dtype::F32, 1.0);
    let order = ops::argsort(&ops::flatten(&logits, 0, -1).unwrap(), -1).unwrap();
    let partition = ops::argpartition(&logits, -3, -1).unwrap();
    let counts = ops::sum(&ops::greater(&logits, &logits).unwrap(), &[-1], true).unwrap();
    let made = [
        ops::argmax(&logits, -1, false).unwrap(),
        ops::argmin(&logits, -1, true).unwrap(),
        greedy_token(&logits).unwrap(),
        random::categorical(&logits, -1, Some(&random::key(1).unwrap())).unwrap(),
        ops::slice_axis(&partition, -1, n - 3, n).unwrap(),
        route(&logits, 3, true, Scoring::Softmax).unwrap().0,
        ops::floor_divide(&order, &Array::scalar(2u32).unwrap()).unwrap(),
        ops::minimum(&counts, &Array::scalar(n - 1).unwrap()).unwrap(),
    ];
    let mut results = Vec::new();
    for (i, indices) in made.iter().enumerate() {
        for indices in [
            indices.clone(),
            ops::expand_dims(indices, &[-1]).unwrap(),
            ops::reshape(indices, &[-1]).unwrap(),
            indices.astype(Dtype::I32).unwrap(),
            ops::concatenate([indices, indices], 0).unwrap(),
            ops::take(indices, &array(&[0u32], &[1]), 0).unwrap(),
        ] {
            let rows = ops::take(&table, &indices, 0).unwrap();
            assert!(!indices.is_available(), "indices {i} were computed");
            results.push(rows);
        }
    }
    mlx::eval(&results).unwrap();
    // Every byte is an index of 256 rows.
    let codes = rng.array(&[2, 3], Dtype::F32, 40.0).astype(Dtype::U8).unwrap();
    let table = rng.array(&[256], Dtype::F32, 1.0);
    ops::take(&table, &codes, 0).unwrap();
    assert!(!codes.is_available());
}

/// Memory safety rests on the bounds that ops claim: they are held to the values.
#[test]
fn known_bounds_hold_the_values() {
    let mut rng = Rng::new(14);
    let dtypes = [Dtype::I32, Dtype::U32, Dtype::I8, Dtype::U8, Dtype::I64, Dtype::Bool];
    let mut claims = 0;
    for _ in 0..400 {
        let spread = [1, 3, 100, i32::MAX / 2][rng.below(4) as usize];
        let mut make = || {
            let values: Vec<i32> = (0..6).map(|_| rng.below(spread) - spread / 4).collect();
            let a = array(&values, &[2, 3]);
            a.astype(dtypes[rng.below(6) as usize]).unwrap()
        };
        let (a, b) = (make(), make());
        let results = [
            ops::add(&a, &b),
            ops::subtract(&a, &b),
            ops::floor_divide(&a, &b),
            ops::maximum(&a, &b),
            ops::minimum(&a, &b),
            ops::select(&ops::less(&a, &b).unwrap(), &a, &b),
            ops::concatenate([&a, &b], 0),
            ops::stack([&a, &b], 1),
            ops::sum(&a, &[0], false),
            ops::sum(&ops::less(&a, &b).unwrap(), &[], false),
            ops::max(&a, &[1], true),
            ops::min(&a, &[], false),
            ops::sort(&a, 0),
            ops::topk(&a, 2, 1),
            ops::argsort(&a, 0),
            ops::argmax(&a, 1, false),
            ops::astype(&a, b.dtype()),
            ops::full(&[2], &ops::max(&a, &[], false).unwrap(), b.dtype()),
            ops::arange(rng.below(50).into(), 90.0, rng.below(9) as f64 + 1.0, Dtype::I16),
            ops::arange(90.0, rng.below(50).into(), -7.0, Dtype::I8),
            ops::zeros(&[3], b.dtype()),
            ops::ones(&[3], b.dtype()),
            ops::repeat(&ops::slice_axis(&a, 1, 0, 2).unwrap(), 2, 0),
            ops::put_along_axis(&a, &ops::argsort(&a, 0).unwrap(), &b, 0),
        ];
        for (i, result) in results.into_iter().enumerate() {
            // Some divide by zero.
            let Ok(result) = result else { continue };
            let Some(known) = result.known_within() else { continue };
            claims += 1;
            let values = result.astype(Dtype::I64).unwrap().to_vec::<i64>().unwrap();
            assert!(
                values.iter().all(|v| known.contains(v)),
                "result {i} of {} and {}: {values:?} are not within {known:?}",
                a.dtype(),
                b.dtype()
            );
        }
    }
    assert!(claims > 4000, "only {claims} results had bounds");
}

#[test]
fn rope_divides_positions_by_its_freqs() {
    let x = Rng::new(15).array(&[1, 2, 5, 8], Dtype::F32, 1.0);
    let base = 100f32;
    let freqs: Vec<f32> = (0..4).map(|i| base.powf(2.0 * i as f32 / 8.0)).collect();
    let mut rope = fast::Rope { dims: 8, traditional: false, base, scale: 1.0, freqs: None };
    let from_base = fast::rope(&x, &rope, 3).unwrap();
    rope.freqs = Some(array(&freqs, &[4]));
    assert_close(&fast::rope(&x, &rope, 3).unwrap(), &from_base, 1e-5, "base^(2i / dims)");
}
