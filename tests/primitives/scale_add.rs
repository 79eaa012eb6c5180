//! `scale_add` against a multiplication and an addition.

use mlx::primitives::{Precision, ScaleAdd, scale_add};
use mlx::{Array, Dtype, ops};

use super::fused;
use crate::support::bits::assert_same_bits;
use crate::support::data::{self, DTYPES, Rng};
use crate::support::on_each_device;

on_each_device! {
    fn scale_add_has_the_stock_bits() {
        let mut rng = Rng::new(201);
        for dtype in DTYPES {
            for scale in [1.0, 0.3, -17.5] {
                if !fused(&ScaleAdd { scale }, dtype, Precision::Exact) { continue; }
                for shape in [&[1][..], &[3, 5], &[2, 1, 0]] {
                    let (x, y) = (rng.array(shape, dtype, 1.0), rng.array(shape, dtype, 1.0));
                    let factor = Array::scalar_like(scale, &x).unwrap();
                    let expected = ops::add(&ops::multiply(&x, &factor).unwrap(), &y).unwrap();
                    assert_same_bits(&scale_add(&x, &y, scale).unwrap(), &expected, dtype);
                }
            }
        }
        let x = data::strided(&rng.array(&[4, 6], Dtype::F32, 1.0));
        let expected = ops::add(&x, &x).unwrap();
        assert_same_bits(&scale_add(&x, &x, 1.0).unwrap(), &expected, "strided");
    }
}
