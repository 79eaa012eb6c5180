//! How far fast may be from stock: stock's own rounding, derived.

use mlx::Dtype;

/// What a distance may be of the derived one. Of sums of normal numbers the derivation is right within a tenth; few outputs
/// are off by a quarter.
const SLACK: f64 = 1.5;

/// The error of `activation(gate) * up` by that of `gate` and `up`, all relative: of normal g and u,
/// √(1 + E[silu'(g)²] / E[silu(g)²]).
const GATED: f64 = 1.438;

/// What a case adds up.
#[derive(Clone, Copy)]
pub enum Sum {
    /// Sums of so many products.
    Products(i32),
    /// An activation of one such sum times another.
    Gated(i32),
    /// Values, by the softmax of scores of this variance.
    Attention(f32),
}

impl Sum {
    /// The most that ‖fast - stock‖ / ‖stock‖ may be.
    ///
    /// Stock on the CPU keeps a sum in `dtype` and rounds it after each of its K products. A rounding is off by some ε of
    /// what is rounded, and partial sums of terms of either sign grow with the root of their number: in all the sum is off
    /// by ε √(K / 2). Fast adds in f32, so its distance from stock is stock's error; in f32 it errs as much.
    ///
    /// Attention adds in f32 in both and rounds scores once or twice, weights, and the result of each. An output is made
    /// by the keys of large weights, whose scores, of variance v, have a mean square of v + 4 v².
    pub fn allowed(self, dtype: Dtype) -> f64 {
        let of_sum = |terms: i32| (f64::from(terms) / 2.0).sqrt();
        let roundings = match self {
            Self::Products(terms) => of_sum(terms),
            Self::Gated(terms) => GATED * of_sum(terms),
            Self::Attention(variance) => {
                let v = f64::from(variance);
                (2.0 * (v + 4.0 * v * v) + 3.0).sqrt()
            }
        };
        let both = if dtype == Dtype::F32 { 2f64.sqrt() } else { 1.0 };
        SLACK * both * roundings * rounding(dtype)
    }
}

/// ε: the root mean square of the relative error of one rounding, over mantissas as products have them (the density of m
/// is 1 / m): half a unit of the last place, evenly, of √(3 / (8 ln 2)) on average.
fn rounding(dtype: Dtype) -> f64 {
    let half_unit = match dtype {
        Dtype::Bf16 => 2f64.powi(-8),
        Dtype::F16 => 2f64.powi(-11),
        _ => 2f64.powi(-24),
    };
    half_unit / 3f64.sqrt() * (3.0 / (8.0 * 2f64.ln())).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums that are rounded to bf16 after each product, as stock rounds them, against the same in f64.
    #[test]
    fn the_derivation_is_what_sums_of_that_type_show() {
        let mut state = 1u64;
        let mut normal = || {
            // of twelve even numbers, to be near enough
            (0..12)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 11) as f64 / (1u64 << 53) as f64
                })
                .sum::<f64>()
                - 6.0
        };
        let to_bf16 = |x: f64| {
            let bits = (x as f32).to_bits();
            f64::from(f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000))
        };
        for terms in [256, 4096] {
            let (mut off, mut size) = (0.0, 0.0);
            for _ in 0..2000 {
                let (mut exact, mut rounded) = (0.0, 0.0);
                for _ in 0..terms {
                    let product = normal();
                    exact += product;
                    rounded = to_bf16(rounded + product);
                }
                off += (rounded - exact).powi(2);
                size += exact * exact;
            }
            let derived = Sum::Products(terms).allowed(Dtype::Bf16) / SLACK;
            let ratio = (off / size).sqrt() / derived;
            assert!((0.9..1.1).contains(&ratio), "{terms} terms: {ratio} of what is derived");
        }
    }
}
