//! Comparison bit for bit.

use mlx::{Array, Dtype};

/// The elements' bits, with every NaN as the same one: which operand's payload survives an addition
/// is the compiler's choice, in stock MLX as here.
fn canonical(a: &Array) -> Vec<u64> {
    let bytes = a.to_bytes().unwrap();
    let size = a.dtype().size();
    let bits = bytes.chunks_exact(size).map(|c| {
        let mut word = [0; 8];
        word[..size].copy_from_slice(c);
        u64::from_le_bytes(word)
    });
    let (exponent, sign) = match a.dtype() {
        Dtype::F16 => (0x7c00, 0x8000),
        Dtype::Bf16 => (0x7f80, 0x8000),
        Dtype::F32 => (0x7f80_0000, 0x8000_0000),
        _ => return bits.collect(),
    };
    let canonical_nan = exponent + 1;
    bits.map(|b| if b & !sign > exponent { canonical_nan } else { b }).collect()
}

/// Panics with the first difference unless the two have the same shape, dtype and bits.
#[track_caller]
pub(crate) fn assert_same_bits(got: &Array, expected: &Array, what: impl std::fmt::Display) {
    assert_eq!(got.shape(), expected.shape(), "{what}: shape");
    assert_eq!(got.dtype(), expected.dtype(), "{what}: dtype");
    let (g, e) = (canonical(got), canonical(expected));
    let differing = g.iter().zip(&e).filter(|(a, b)| a != b).count();
    if let Some(at) = g.iter().zip(&e).position(|(a, b)| a != b) {
        panic!(
            "{what}: {differing} of {} elements differ, first at {at}: got {:#x}, expected {:#x}",
            g.len(),
            g[at],
            e[at]
        );
    }
}

/// Panics unless many values are finite and not zero: a comparison of zeros or NaN proves nothing.
/// (With K = 1 and two bits most products are zero.)
#[track_caller]
pub(crate) fn assert_lively(a: &Array, what: impl std::fmt::Display) {
    let values = as_f32(a);
    let finite = values.iter().filter(|v| v.is_finite() && **v != 0.0).count();
    assert!(finite * 8 > values.len(), "{what}: {finite} of {} values say anything", values.len());
}

/// Panics unless each pair of values is closer than `part` of the largest expected one.
#[track_caller]
pub(crate) fn assert_close(got: &Array, expected: &Array, part: f32, what: impl std::fmt::Display) {
    assert_eq!(got.shape(), expected.shape(), "{what}: shape");
    let (g, e) = (as_f32(got), as_f32(expected));
    let size = e.iter().fold(0f32, |m, v| m.max(v.abs()));
    let error = g.iter().zip(&e).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(size > 0.0 && error <= part * size, "{what}: error {error:e} of {size:e}");
}

/// The values as `f32`, which holds every value of the float types tested.
pub(crate) fn as_f32(a: &Array) -> Vec<f32> {
    a.astype(Dtype::F32).unwrap().to_vec::<f32>().unwrap()
}
