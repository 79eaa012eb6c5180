//! A fast product may find its vector stored by the task before it, and then it is that vector.
#![cfg(feature = "custom-primitive")]
#![expect(clippy::unwrap_used, reason = "a failing test should panic where it fails")]

use mlx::primitives::{Precision, gather_qmm_combine, quantized_matmul};
use mlx::quantization::{Quantization, QuantizedWeight};
use mlx::{Array, Dtype, ops};

const K: i32 = 512;
const N: i32 = 1024;

fn random(shape: &[i32], seed: u64) -> Array {
    let key = mlx::random::key(seed).unwrap();
    let a = mlx::random::normal(shape, Dtype::Bf16, 0.0, 1.0, Some(&key)).unwrap();
    a.eval().unwrap();
    a
}

fn weight(shape: &[i32], q: Quantization, seed: u64) -> QuantizedWeight {
    let w = QuantizedWeight::quantize(&random(shape, seed), q).unwrap();
    mlx::eval([&w.w, &w.scales].into_iter().chain(&w.biases)).unwrap();
    w
}

/// Exact rounds to bfloat16 after every product, which makes 3 % here; of another vector the distance is over 100 %.
fn assert_near(what: &str, fast: &Array, exact: &Array) {
    let norm = |a: &Array| {
        let square = ops::square(&a.astype(Dtype::F32).unwrap()).unwrap();
        ops::sum(&square, &[], false).unwrap().item::<f32>().unwrap().sqrt()
    };
    let distance = norm(&ops::subtract(fast, exact).unwrap()) / norm(exact);
    assert!(distance < 0.1, "{what}: fast is {distance} away from exact");
}

#[test]
fn vectors_that_follow_one_another_are_not_confused() {
    mlx::set_default_device(mlx::Device::Cpu).unwrap();
    let kinds =
        [Quantization::affine(64, 4), Quantization::affine(32, 4), Quantization::affine(64, 8)];
    let weights = kinds.map(|q| weight(&[N, K], q, 1));
    // takes some time, in which the products of a vector of it join
    let heavy = weight(&[K, K], kinds[0], 3);
    let many = random(&[256, K], 4);
    // more experts than vectors are kept
    let experts = weight(&[10, N, K], kinds[0], 2);
    let indices = Array::from_slice(&[3u32, 1, 4, 0, 5, 9, 2, 6, 8, 7], &[1, 10]).unwrap();
    let scores = Array::from_slice(&[0.1f32; 10], &[1, 10]).unwrap().astype(Dtype::Bf16).unwrap();
    let vectors: Vec<_> = (10..30).map(|seed| random(&[1, K], seed)).collect();
    for threads in [1, 3] {
        mlx::set_num_threads(threads).unwrap();
        for (i, vector) in vectors.iter().enumerate() {
            let what = format!("vector {i}, {threads} threads");
            let product = |x: &Array, w: &QuantizedWeight, precision| {
                let y = quantized_matmul(x, w, true, precision).unwrap();
                y.eval().unwrap();
                y
            };
            let exact = product(&ops::add(vector, vector).unwrap(), &weights[0], Precision::Exact);
            // a sum is where the one before it was
            let fast = product(&ops::add(vector, vector).unwrap(), &weights[0], Precision::Fast);
            assert_near(&what, &fast, &exact);

            let late = quantized_matmul(&many, &heavy, true, Precision::Fast).unwrap();
            let x = ops::slice_axis(&late, 0, i as i32, i as i32 + 1).unwrap();
            let x = ops::add(&x, vector).unwrap();
            let fast =
                weights.each_ref().map(|w| quantized_matmul(&x, w, true, Precision::Fast).unwrap());
            mlx::eval(&fast).unwrap();
            for ((fast, w), q) in fast.iter().zip(&weights).zip(kinds) {
                let exact = product(&x, w, Precision::Exact);
                assert_near(&format!("{what}, {q} beside others"), fast, &exact);
            }

            let x = random(&[1, 10, 1, K], i as u64);
            let [fast, exact] = [Precision::Fast, Precision::Exact].map(|precision| {
                gather_qmm_combine(&x, &experts, None, &indices, &scores, precision).unwrap()
            });
            assert_near(&format!("{what}, experts"), &fast, &exact);
        }
    }
}
