//! Random numbers, straight in the bytes that a file holds.
//!
//! Codes are uniform over what their format offers; the scale of each group, which varies, gives the weights the
//! wanted standard deviation.

use half::bf16;
use mlx::quantization::Mode;

/// What a tensor's bytes mean.
#[derive(Debug, Clone, Copy)]
pub(super) enum Values {
    /// Dense bf16.
    Gaussian { mean: f32, std: f32 },
    /// Packed weights.
    Codes(Codes),
    /// Scales of the groups.
    Scales(Codes),
    /// Biases of the groups; affine only.
    Biases(Codes),
}

/// How packed weights look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codes {
    pub(super) mode: Mode,
    pub(super) bits: i32,
    /// Standard deviation of the weights that the codes stand for.
    pub(super) std: f32,
}

impl Values {
    /// Fills `out` with the tensor's next bytes. Its length is a multiple of 8, but for the last call's.
    pub(super) fn fill(&self, random: &mut Random, out: &mut [u8]) {
        match self {
            Self::Gaussian { mean, std } => {
                fill_bf16(out, || mean + std * random.gaussian());
            }
            Self::Codes(codes) if codes.mode == Mode::Mxfp8 => {
                random.fill(out);
                out.iter_mut().for_each(|byte| *byte = mxfp8_code(*byte));
            }
            Self::Codes(_) => random.fill(out),
            Self::Scales(codes) => match codes.mode {
                Mode::Affine => fill_bf16(out, || codes.affine_scale(random)),
                Mode::Nvfp4 => {
                    let target = codes.std / rms((0..16).map(fp4_value));
                    let table: Vec<f32> = (0..0x7f).map(e4m3_value).collect();
                    let choice = Choice::between(&table, target);
                    out.iter_mut().for_each(|byte| *byte = choice.pick(random));
                }
                _ => {
                    let rms = if codes.mode == Mode::Mxfp4 {
                        rms((0..16).map(fp4_value))
                    } else {
                        rms((0..=255).map(|byte| e4m3_value(mxfp8_code(byte))))
                    };
                    let table: Vec<f32> = (0..=254).map(|e| f32::exp2(e as f32 - 127.0)).collect();
                    let choice = Choice::between(&table, codes.std / rms);
                    out.iter_mut().for_each(|byte| *byte = choice.pick(random));
                }
            },
            Self::Biases(codes) => {
                // The scales come from the same random numbers, drawn anew.
                let middle = ((1 << codes.bits) - 1) as f32 / 2.0;
                fill_bf16(out, || {
                    let scale = bf16::from_f32(codes.affine_scale(random)).to_f32();
                    // A group's mean is near zero, not at it; the sign of the scale is random.
                    -scale * middle * if scale.to_bits() & 0x10000 == 0 { 1.02 } else { 0.98 }
                });
            }
        }
    }
}

impl Codes {
    fn affine_scale(&self, random: &mut Random) -> f32 {
        const SPREAD: f32 = 0.4;
        let levels = f32::exp2(self.bits as f32);
        let code_std = ((levels * levels - 1.0) / 12.0).sqrt();
        let spread_rms = (1.0 + SPREAD * SPREAD / 3.0).sqrt();
        let factor = 1.0 + SPREAD * random.uniform();
        let sign = if random.bit() { 1.0 } else { -1.0 };
        sign * self.std / (code_std * spread_rms) * factor
    }
}

/// A random choice between two neighbours in a table, such that the mean square is a target's square.
struct Choice {
    below: u8,
    /// Chance of the upper one, of 2^32.
    chance: u32,
}

impl Choice {
    fn between(table: &[f32], target: f32) -> Self {
        let above = table.iter().position(|value| *value > target).unwrap_or(table.len() - 1);
        let below = above.saturating_sub(1);
        let square = |index: usize| f64::from(table[index]).powi(2);
        let share = (f64::from(target).powi(2) - square(below)) / (square(above) - square(below));
        let chance = (share.clamp(0.0, 1.0) * f64::from(u32::MAX)) as u32;
        Self { below: below as u8, chance }
    }

    fn pick(&self, random: &mut Random) -> u8 {
        self.below + u8::from((random.next() >> 32) as u32 <= self.chance)
    }
}

fn fill_bf16(out: &mut [u8], mut next: impl FnMut() -> f32) {
    for pair in out.chunks_exact_mut(2) {
        pair.copy_from_slice(&bf16::from_f32(next()).to_le_bytes());
    }
}

fn rms(values: impl ExactSizeIterator<Item = f32>) -> f32 {
    let count = values.len() as f32;
    (values.map(|value| value * value).sum::<f32>() / count).sqrt()
}

/// An E4M3 number between 1/4 and 4 from random bits: the format's whole range would be all outliers and NaN.
fn mxfp8_code(random: u8) -> u8 {
    let exponent = 5 + ((random >> 3) & 3);
    (random & 0x87) | (exponent << 3)
}

/// E2M1.
fn fp4_value(code: u8) -> f32 {
    const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let magnitude = MAGNITUDES[usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// E4M3 without infinities.
fn e4m3_value(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = if exponent == 0 {
        mantissa * f32::exp2(-9.0)
    } else {
        (1.0 + mantissa / 8.0) * f32::exp2((exponent - 7) as f32)
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// xoshiro256++: fast, and the same on every machine.
pub(super) struct Random {
    state: [u64; 4],
}

impl Random {
    /// A stream of its own for each seed and name.
    pub(super) fn new(seed: u64, name: &str) -> Self {
        // FNV-1a
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in name.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        // SplitMix64
        let mut seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ hash;
        let state = std::array::from_fn(|_| {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = seed;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        });
        Self { state }
    }

    fn next(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    fn fill(&mut self, out: &mut [u8]) {
        let mut chunks = out.chunks_exact_mut(8);
        for chunk in &mut chunks {
            chunk.copy_from_slice(&self.next().to_le_bytes());
        }
        let rest = chunks.into_remainder();
        if !rest.is_empty() {
            rest.copy_from_slice(&self.next().to_le_bytes()[..rest.len()]);
        }
    }

    fn bit(&mut self) -> bool {
        self.next() >> 63 == 1
    }

    /// Between -1 and 1.
    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Mean 0, standard deviation 1: the sum of four uniform numbers is close enough.
    pub(super) fn gaussian(&mut self) -> f32 {
        let bits = self.next();
        let sum: u32 = (0..4).map(|i| (bits >> (16 * i)) as u32 & 0xffff).sum();
        (sum as f32 - 2.0 * 65535.0) / (65536.0 / 3.0_f32.sqrt())
    }
}
