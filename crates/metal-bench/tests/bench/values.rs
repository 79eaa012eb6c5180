//! Numbers for tests: reproducible, ordinary or extreme, in any of the types.

use half::{bf16, f16};

/// Floating-point types of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Float {
    F16,
    Bf16,
    F32,
}

impl Float {
    pub(crate) const ALL: [Float; 3] = [Float::F16, Float::Bf16, Float::F32];

    /// Its name in Metal, which is part of the names of kernels.
    pub(crate) fn metal(self) -> &'static str {
        match self {
            Float::F16 => "float16_t",
            Float::Bf16 => "bfloat16_t",
            Float::F32 => "float",
        }
    }

    pub(crate) fn size(self) -> usize {
        if self == Float::F32 { 4 } else { 2 }
    }

    pub(crate) fn bytes(self, values: &[f32]) -> Vec<u8> {
        let mut out = Vec::with_capacity(values.len() * self.size());
        for x in values {
            match self {
                Float::F16 => out.extend(f16::from_f32(*x).to_ne_bytes()),
                Float::Bf16 => out.extend(bf16::from_f32(*x).to_ne_bytes()),
                Float::F32 => out.extend(x.to_ne_bytes()),
            }
        }
        out
    }

    pub(crate) fn read(self, bytes: &[u8]) -> Vec<f32> {
        let two = |b: &[u8]| [b[0], b[1]];
        match self {
            Float::F16 => bytes.chunks(2).map(|b| f16::from_ne_bytes(two(b)).to_f32()).collect(),
            Float::Bf16 => bytes.chunks(2).map(|b| bf16::from_ne_bytes(two(b)).to_f32()).collect(),
            Float::F32 => {
                bytes.chunks(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
        }
    }

    /// The relative error of one rounding.
    pub(crate) fn epsilon(self) -> f32 {
        match self {
            Float::F16 => f16::EPSILON.to_f32(),
            Float::Bf16 => bf16::EPSILON.to_f32(),
            Float::F32 => f32::EPSILON,
        }
    }
}

/// What numbers are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Range {
    /// Around zero, of about the size of activations.
    Ordinary,
    /// With zeros of both signs, denormals, the largest of the type and infinities among them.
    Extreme,
}

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In [-1, 1).
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }

    pub(crate) fn floats(&mut self, n: usize, scale: f32, range: Range) -> Vec<f32> {
        const EXTREME: [f32; 12] =
            [0.0, -0.0, 1e-7, -6e-5, 1e-40, -1e-38, 6e4, -65504.0, 3e38, -3e38, f32::INFINITY, 1.0];
        (0..n)
            .map(|_| {
                // a few in a row: more, and everything is NaN
                if range == Range::Extreme && self.below(300) == 0 {
                    EXTREME[self.below(EXTREME.len())]
                } else {
                    self.unit() * scale
                }
            })
            .collect()
    }
}

/// The first place where bits differ, NaN for NaN being no difference; `None` if there is none.
pub(crate) fn first_difference(kind: Float, a: &[u8], b: &[u8]) -> Option<String> {
    if a.len() != b.len() {
        return Some(format!("{} and {} bytes", a.len(), b.len()));
    }
    let (x, y) = (kind.read(a), kind.read(b));
    let size = kind.size();
    let differs = |i: &usize| {
        a[i * size..(i + 1) * size] != b[i * size..(i + 1) * size]
            && !(x[*i].is_nan() && y[*i].is_nan())
    };
    let all: Vec<usize> = (0..x.len()).filter(differs).collect();
    let i = *all.first()?;
    Some(format!("{} of {}, first at {i}: {:e} and {:e}", all.len(), x.len(), x[i], y[i]))
}
