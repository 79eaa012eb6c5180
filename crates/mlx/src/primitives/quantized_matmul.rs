//! Products with one quantized matrix.

use zmlx_sys::ffi;

use super::{AFFINE_4, Ask, Parameters, Precision, dims, parts};
use crate::quantization::{Quantization, QuantizedWeight, check_rows, product};
use crate::{Array, Result};

/// What [`quantized_matmul`] is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantizedMatmul {
    /// How the matrix is quantized.
    pub quantization: Quantization,
    /// Whether it is `[N, K]`; `[K, N]` otherwise.
    pub transpose: bool,
    /// Columns of `x`, K.
    pub inner: i32,
    /// Columns of the result, N.
    pub outer: i32,
}

impl QuantizedMatmul {
    /// 4 bits at the shape of Qwen3-30B-A3B's query projection.
    pub(super) const TYPICAL: Self =
        Self { quantization: AFFINE_4, transpose: true, inner: 2048, outer: 4096 };

    /// For a weight `[N, K]`.
    pub fn of(w: &QuantizedWeight) -> Self {
        let (outer, inner) = dims(w);
        Self { quantization: w.quantization, transpose: true, inner, outer }
    }
}

impl Ask for QuantizedMatmul {
    fn primitive(&self) -> &'static str {
        "quantized_matmul"
    }

    fn parameters(&self) -> Parameters {
        Parameters::new()
            .quantization(self.quantization)
            .with("transpose", self.transpose)
            .with("inner", self.inner)
            .with("outer", self.outer)
    }
}

/// [`quantization::quantized_matmul`](crate::quantization::quantized_matmul), vectorised and
/// threaded.
pub fn quantized_matmul(
    x: &Array,
    w: &QuantizedWeight,
    transpose: bool,
    precision: Precision,
) -> Result<Array> {
    w.check("quantized_matmul")?;
    check_rows("quantized_matmul", x, w)?;
    let out = Array::wrap(ffi::fused_quantized_matmul(
        x.raw(),
        &parts(w),
        transpose,
        &w.quantization.params(),
        precision == Precision::Fast,
    )?);
    product(x, w, out)
}

/// [`quantized_matmul`] with a `bias` `[N]` added to `x · Wᵀ`; on CUDA in the same launch.
///
/// # Errors
/// As [`quantized_matmul`].
pub fn quantized_linear(
    x: &Array,
    w: &QuantizedWeight,
    bias: &Array,
    precision: Precision,
) -> Result<Array> {
    w.check("quantized_linear")?;
    check_rows("quantized_linear", x, w)?;
    let (q, fast) = (w.quantization.params(), precision == Precision::Fast);
    let out = ffi::fused_quantized_linear(x.raw(), &parts(w), bias.raw(), &q, fast)?;
    product(x, w, Array::wrap(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dtype, ops, random};

    #[test]
    fn linear_is_a_product_and_a_sum() {
        let normal = |seed, shape: &[i32]| {
            let key = random::key(seed).unwrap();
            random::normal(shape, Dtype::Bf16, 0.0, 1.0, Some(&key)).unwrap()
        };
        let (x, bias) = (normal(1, &[2, 1, 64]), normal(2, &[96]));
        for q in [
            Quantization::affine(64, 4),
            Quantization::default_of(crate::quantization::Mode::Mxfp4),
        ] {
            let w = QuantizedWeight::quantize(&normal(3, &[96, 64]), q).unwrap();
            let y = quantized_matmul(&x, &w, true, Precision::Exact).unwrap();
            let expected = ops::add(&y, &bias).unwrap().to_bytes().unwrap();
            let y = quantized_linear(&x, &w, &bias, Precision::Exact).unwrap();
            assert_eq!((y.shape(), y.dtype()), (&[2, 1, 96][..], Dtype::Bf16), "{q}");
            assert_eq!(y.to_bytes().unwrap(), expected, "{q}");
            // a bias of another type widens the sum, as stock's does
            let wide = bias.astype(Dtype::F32).unwrap();
            let y = quantized_linear(&x, &w, &wide, Precision::Exact).unwrap();
            assert_eq!(y.dtype(), Dtype::F32, "{q}");
        }
    }
}
