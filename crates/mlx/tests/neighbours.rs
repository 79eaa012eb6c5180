//! Products of one vector that follow one another run as one launch, with the bits that each has by itself.
#![cfg(feature = "custom-primitive")]
#![expect(clippy::unwrap_used, reason = "a failing test should panic where it fails")]

use mlx::primitives::{Glu, Precision, quantized_matmul, swiglu_mlp};
use mlx::profile::{self, Kind, Profile};
use mlx::quantization::{Quantization, QuantizedWeight};
use mlx::{Array, Dtype, ops};

const K: i32 = 1024;

fn random(shape: &[i32], seed: u64) -> Array {
    let key = mlx::random::key(seed).unwrap();
    let a = mlx::random::normal(shape, Dtype::Bf16, 0.0, 0.1, Some(&key)).unwrap();
    a.eval().unwrap();
    a
}

/// Weights whose values are there.
fn weight(n: i32, seed: u64) -> QuantizedWeight {
    let w = QuantizedWeight::quantize(&random(&[n, K], seed), Quantization::affine(64, 4)).unwrap();
    mlx::eval([&w.w, &w.scales].into_iter().chain(&w.biases)).unwrap();
    w
}

/// A vector that takes some time, in which whoever builds a graph gets ahead of the stream.
fn late_vector(heavy: &QuantizedWeight, rows: &Array) -> Array {
    let y = quantized_matmul(rows, heavy, true, Precision::Exact).unwrap();
    let row = ops::slice_axis(&y, 0, 0, 1).unwrap();
    ops::add(&row, &row).unwrap()
}

/// The launches of a primitive, on the pool or inline.
fn launches(profile: &Profile, name: &str) -> usize {
    let is_launch = |kind| kind == Kind::Launch || kind == Kind::Inline;
    profile.spans.iter().filter(|s| s.name == name && is_launch(s.kind)).count()
}

fn profiled(outputs: &[Array]) -> Profile {
    profile::start(10_000).unwrap();
    mlx::eval(outputs).unwrap();
    profile::stop()
}

fn assert_same(name: &str, actual: &Array, expected: &Array) {
    assert!(ops::array_equal(actual, expected, true).unwrap(), "{name} differs");
}

/// One test: the profile is the process's.
#[test]
fn products_of_one_vector_are_one_launch() {
    mlx::set_default_device(mlx::Device::Cpu).unwrap();
    let heavy = weight(K, 1);
    let rows = random(&[256, K], 2);
    let others: Vec<_> =
        [4096, 256, 512].iter().zip(3..).map(|(n, seed)| weight(*n, seed)).collect();
    let (gate, up) = (weight(512, 7), weight(512, 8));
    for threads in [1, 2, 3, 16] {
        mlx::set_num_threads(threads).unwrap();
        for precision in [Precision::Exact, Precision::Fast] {
            let x = late_vector(&heavy, &rows);
            x.eval().unwrap();
            let alone: Vec<_> = others
                .iter()
                .map(|w| {
                    let y = quantized_matmul(&x, w, true, precision).unwrap();
                    y.eval().unwrap();
                    y
                })
                .collect();
            let mlp = swiglu_mlp(&x, Glu::new(&gate, &up), precision).unwrap();
            mlp.eval().unwrap();

            let x = late_vector(&heavy, &rows);
            let together: Vec<_> = others
                .iter()
                .map(|w| quantized_matmul(&x, w, true, precision).unwrap())
                .chain([swiglu_mlp(&x, Glu::new(&gate, &up), precision).unwrap()])
                .collect();
            let profile = profiled(&together);
            // the late vector's product and the four others
            let count = launches(&profile, "QuantizedMatmulRows") + launches(&profile, "SwiGLUMLP");
            assert_eq!(count, 2, "{threads} threads, {precision:?}");
            for (y, expected) in together.iter().zip(alone.iter().chain([&mlp])) {
                assert_same(&format!("{threads} threads, {precision:?}"), y, expected);
            }
        }
    }

    // Other vectors, and weights that are only computed now, run by themselves.
    let x = late_vector(&heavy, &rows);
    let other = ops::add(&x, &x).unwrap();
    let fresh = QuantizedWeight {
        scales: ops::multiply(&others[0].scales, &others[0].scales).unwrap(),
        ..others[0].clone()
    };
    let outputs = [
        quantized_matmul(&x, &others[1], true, Precision::Exact).unwrap(),
        quantized_matmul(&other, &others[1], true, Precision::Exact).unwrap(),
        quantized_matmul(&x, &fresh, true, Precision::Exact).unwrap(),
    ];
    let profile = profiled(&outputs);
    assert_eq!(launches(&profile, "QuantizedMatmulRows"), 4);
    let again = quantized_matmul(&other, &others[1], true, Precision::Exact).unwrap();
    assert_same("another vector", &outputs[1], &again);
    let again = quantized_matmul(&x, &fresh, true, Precision::Exact).unwrap();
    assert_same("a weight that was not there", &outputs[2], &again);
    let twice = ops::add(&outputs[0], &outputs[0]).unwrap();
    assert_same("twice the vector", &outputs[1], &twice);
}
