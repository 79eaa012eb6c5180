//! MLX's own kernels on the bench give what they should: the bench is held against arithmetic in double
//! precision before anything is held against the bench.

use metal_bench::Order;

use crate::{
    quantized::{Matrices, Quantization, Routed, gather_qmv, reference, stock},
    values::{Float, Random, Range},
};

#[test]
fn gather_qmv_is_close_to_the_product_of_dequantized_matrices() {
    let mut machine = stock();
    let mut random = Random::new(1);
    let mut cases = 0;
    for kind in Float::ALL {
        for q in Quantization::all() {
            let k = q.fast_alignment();
            for [n, k] in
                [[8, k], [16, 2 * k], [5, k], [12, k + q.group_size], [8, q.group_size * 3]]
            {
                let w = Matrices::random(&mut random, q, kind, [3, n, k], Range::Ordinary);
                let x = Routed::random(&mut random, kind, [2, 1, 2, k], 3, Range::Ordinary);
                let expected = reference(&x, &w);
                let size = expected.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
                for order in Order::ALL {
                    let got = kind.read(&gather_qmv(&mut machine, &x, &w, order));
                    assert_eq!(got.len(), expected.len());
                    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                        let error = (f64::from(*got) - expected).abs();
                        // sums of x are taken in the type of x, so a few of its roundings remain
                        let allowed = f64::from(kind.epsilon()) * size * 4.0 + 1e-5;
                        assert!(
                            error <= allowed,
                            "{q:?} {kind:?} n={n} k={k} {i}: {got} {expected}"
                        );
                    }
                    cases += 1;
                }
            }
        }
    }
    crate::say(&format!("gather_qmv: {cases} cases are close to the product of real numbers"));
}
