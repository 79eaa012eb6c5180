//! Infinities, NaN, denormals and the largest values, in activations, scales, biases and codes.

use mlx::primitives::{Precision, gather_qmm_combine};
use mlx::quantization::{self, Mode, QuantizedWeight};
use mlx::{Array, Dtype, primitives};

use super::swiglu::{ACTIVATIONS, Call};
use super::{asks, combine, fused, quantized};
use crate::support::bits::{as_f32, assert_same_bits};
use crate::support::data::{self, DTYPES, Rng, quantizations};
use crate::support::on_each_device;

/// What is sprinkled over otherwise normal values.
const FLAVOURS: [(&str, &[f32]); 6] = [
    ("denormals", &[1e-40, -3e-42, 6e-8, -5e-7, 1e-45]),
    ("zeros", &[0.0, -0.0]),
    ("large", &[3e38, -3e38, 6.5e4, -6.5e4, 1e30]),
    ("infinities", &[f32::INFINITY, f32::NEG_INFINITY]),
    ("nan", &[f32::NAN]),
    ("tiny normals", &[1.2e-38, -1.2e-38, 6.2e-5, -6.2e-5]),
];

/// Normal values with about one in `every` replaced.
fn sprinkle(rng: &mut Rng, shape: &[i32], dtype: Dtype, values: &[f32], every: i32) -> Array {
    let len = shape.iter().product::<i32>();
    let all: Vec<f32> = (0..len)
        .map(|_| match rng.below(every) {
            0 => values[rng.below(values.len() as i32) as usize],
            _ => rng.normal(),
        })
        .collect();
    data::array(&all, shape).astype(dtype).unwrap()
}

/// `weight` with any codes, and scales and biases that hold the flavour's values.
fn spoil(rng: &mut Rng, weight: &mut QuantizedWeight, values: &[f32]) {
    let codes: Vec<u32> = (0..weight.w.size()).map(|_| rng.next() as u32).collect();
    weight.w = data::array(&codes, weight.w.shape());
    let shape = weight.scales.shape().to_vec();
    if weight.quantization.mode == Mode::Affine {
        let dtype = weight.scales.dtype();
        weight.scales = sprinkle(rng, &shape, dtype, values, 12);
        weight.biases = Some(sprinkle(rng, &shape, dtype, values, 12));
    } else {
        // Any byte is a scale, up to 2^127, NaN included; mostly moderate ones.
        let near_one = if weight.quantization.mode == Mode::Nvfp4 { 0x30 } else { 0x7a };
        let scales: Vec<u8> =
            (0..weight.scales.size())
                .map(|_| {
                    if rng.below(12) == 0 {
                        rng.next() as u8
                    } else {
                        near_one + rng.below(8) as u8
                    }
                })
                .collect();
        weight.scales = data::array(&scales, &shape);
    }
}

/// How many results there were and how many were finite: NaN alone proves little.
#[derive(Default)]
struct Finite {
    all: usize,
    finite: usize,
}

impl Finite {
    fn count(&mut self, a: &Array) {
        let values = as_f32(a);
        self.all += values.len();
        self.finite += values.iter().filter(|v| v.is_finite()).count();
    }
}

impl Drop for Finite {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.finite * 4 >= self.all, "{} of {} are finite", self.finite, self.all);
        }
    }
}

on_each_device! {
    fn swiglu_with_extremes_has_the_stock_bits() {
        let mut rng = Rng::new(41);
        let mut finite = Finite::default();
        for dtype in DTYPES {
            for q in quantizations() {
                for transpose in [true, false] {
                    if !fused(&asks::swiglu(q, transpose), dtype, Precision::Exact) { continue; }
                    let whole = q.group_size.max(32);
                    for (flavour, values) in FLAVOURS {
                        let (n, k) = if transpose { (19, whole) } else { (whole, 19) };
                        let mut gate = rng.experts([3, n, k], q, dtype, transpose);
                        let mut up = rng.experts([3, n, k], q, dtype, transpose);
                        spoil(&mut rng, &mut gate, values);
                        spoil(&mut rng, &mut up, values);
                        let x = sprinkle(&mut rng, &[5, 1, k], dtype, values, 40);
                        let rhs = Some(rng.indices(&[5], 3));
                        let biases = Some([(); 2].map(|()| sprinkle(&mut rng, &[3, n], dtype, values, 40)));
                        for activation in ACTIVATIONS {
                            let (x, gate, up) = (x.clone(), gate.clone(), up.clone());
                            let (biases, rhs) = (biases.clone(), rhs.clone());
                            let c = Call {
                                x, gate, up, biases, activation, lhs: None, rhs, transpose, sorted: false,
                            };
                            let what = format!("{dtype} {q} transpose {transpose} {flavour} {activation:?}");
                            let expected = c.stock();
                            finite.count(&expected);
                            assert_same_bits(&c.fused(Precision::Exact).unwrap(), &expected, what);
                        }
                    }
                }
            }
        }
    }
}

on_each_device! {
    fn combine_with_extremes_has_the_stock_bits() {
        let mut rng = Rng::new(42);
        let mut finite = Finite::default();
        for dtype in DTYPES {
            for q in quantizations() {
                if !fused(&asks::combine(q), dtype, Precision::Exact) { continue; }
                let whole = q.group_size.max(32);
                    for (flavour, values) in FLAVOURS {
                    let mut down = rng.experts([4, 21, whole], q, dtype, true);
                    spoil(&mut rng, &mut down, values);
                    let x = sprinkle(&mut rng, &[3, 2, 1, whole], dtype, values, 60);
                    let indices = data::array(&rng.routing(3, 2, 4), &[3, 2]);
                    let scores = sprinkle(&mut rng, &[3, 2], dtype, values, 10);
                    let what = format!("{dtype} {q} {flavour}");
                    let expected = combine::stock(&x, &down, &indices, &scores);
                    finite.count(&expected);
                    let got = gather_qmm_combine(&x, &down, None, &indices, &scores, Precision::Exact);
                    assert_same_bits(&got.unwrap(), &expected, what);
                }
            }
        }
    }
}

on_each_device! {
    fn quantized_matmul_with_extremes_has_the_stock_bits() {
        let mut rng = Rng::new(43);
        let mut finite = Finite::default();
        for dtype in DTYPES {
            for q in quantizations() {
                for transpose in [true, false] {
                    if !fused(&asks::matmul(q, transpose), dtype, Precision::Exact) { continue; }
                    let whole = q.group_size.max(32);
                    for (flavour, values) in FLAVOURS {
                        let (n, k) = if transpose { (35, whole) } else { (whole, 35) };
                        let mut w = quantized::matrix(&mut rng, [n, k], q, dtype, transpose);
                        spoil(&mut rng, &mut w, values);
                        let x = sprinkle(&mut rng, &[3, k], dtype, values, 60);
                        let what = format!("{dtype} {q} transpose {transpose} {flavour}");
                        let expected = quantization::quantized_matmul(&x, &w, transpose).unwrap();
                        finite.count(&expected);
                        let got = primitives::quantized_matmul(&x, &w, transpose, Precision::Exact);
                        assert_same_bits(&got.unwrap(), &expected, what);
                    }
                }
            }
        }
    }
}
