//! Seeded data: never zero-filled, so that a forgotten operand shows.

use mlx::quantization::{Mode, Quantization, QuantizedWeight};
use mlx::{Array, Dtype, Element, ops};

/// The activation types.
pub(crate) const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// Every quantisation that MLX has.
pub(crate) fn quantizations() -> Vec<Quantization> {
    let mut all = Vec::new();
    for bits in [2, 3, 4, 5, 6, 8] {
        for group_size in [32, 64, 128] {
            all.push(Quantization::affine(group_size, bits));
        }
    }
    for mode in [Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4] {
        all.push(Quantization::default_of(mode));
    }
    all
}

/// SplitMix64.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: i32) -> i32 {
        (self.next() % n as u64) as i32
    }

    pub(crate) fn uniform(&mut self) -> f32 {
        ((self.next() >> 40) as f32 + 0.5) / (1u64 << 24) as f32
    }

    pub(crate) fn normal(&mut self) -> f32 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f32::consts::TAU * self.uniform()).cos()
    }

    /// Normal values of standard deviation `scale`.
    pub(crate) fn array(&mut self, shape: &[i32], dtype: Dtype, scale: f32) -> Array {
        let values: Vec<f32> = (0..count(shape)).map(|_| scale * self.normal()).collect();
        array(&values, shape).astype(dtype).unwrap()
    }

    /// Indices below `n`, `uint32`.
    pub(crate) fn indices(&mut self, shape: &[i32], n: i32) -> Array {
        let values: Vec<u32> = (0..count(shape)).map(|_| self.below(n) as u32).collect();
        array(&values, shape)
    }

    /// `tokens` rows of `k` different experts.
    pub(crate) fn routing(&mut self, tokens: i32, k: i32, experts: i32) -> Vec<u32> {
        let mut out = Vec::new();
        for _ in 0..tokens {
            let mut left: Vec<u32> = (0..experts as u32).collect();
            for _ in 0..k {
                out.push(left.swap_remove(self.below(left.len() as i32) as usize));
            }
        }
        out
    }

    /// A quantised stack of `experts` matrices: `[E, n, k]`, or `[E, k, n]` without `transpose`.
    pub(crate) fn experts(
        &mut self,
        [experts, n, k]: [i32; 3],
        quantization: Quantization,
        dtype: Dtype,
        transpose: bool,
    ) -> QuantizedWeight {
        let shape = if transpose { [experts, n, k] } else { [experts, k, n] };
        let w = self.array(&shape, dtype, 1.5 / (k as f32).sqrt());
        let weight = QuantizedWeight::quantize(&w, quantization).unwrap();
        // Evaluated once here, not again and again by whoever reads it.
        mlx::eval([&weight.w, &weight.scales].into_iter().chain(&weight.biases)).unwrap();
        weight
    }
}

/// An array of these values.
pub(crate) fn array<T: Element>(values: &[T], shape: &[i32]) -> Array {
    Array::from_slice(values, shape).unwrap()
}

fn count(shape: &[i32]) -> usize {
    shape.iter().map(|d| *d as usize).product()
}

/// `a` as a view with the last axis strided: same values, not row contiguous.
pub(crate) fn strided(a: &Array) -> Array {
    let doubled = ops::repeat(a, 2, -1).unwrap();
    doubled.eval().unwrap();
    let mut stop = doubled.shape().to_vec();
    let mut strides = vec![1; stop.len()];
    *strides.last_mut().unwrap() = 2;
    let start = vec![0; stop.len()];
    let last = stop.len() - 1;
    stop[last] = doubled.dim(-1);
    ops::slice_strided(&doubled, &start, &stop, &strides).unwrap()
}

/// `a` as a view whose first axis skips rows.
pub(crate) fn row_strided(a: &Array) -> Array {
    let doubled = ops::repeat(a, 2, 0).unwrap();
    doubled.eval().unwrap();
    let stop = doubled.shape().to_vec();
    let mut strides = vec![1; stop.len()];
    strides[0] = 2;
    ops::slice_strided(&doubled, &vec![0; stop.len()], &stop, &strides).unwrap()
}

/// A view whose last two axes are swapped in memory.
pub(crate) fn column_major(a: &Array) -> Array {
    let swapped = ops::contiguous(&ops::swapaxes(a, -1, -2).unwrap()).unwrap();
    swapped.eval().unwrap();
    ops::swapaxes(&swapped, -1, -2).unwrap()
}
