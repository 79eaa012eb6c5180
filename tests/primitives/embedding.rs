//! `quantized_embedding` against stock: rows of the table's three arrays, dequantized.

use mlx::primitives::{self, Precision, QuantizedEmbedding};
use mlx::quantization::{Mode, QuantizedWeight};
use mlx::{Array, ops};

use super::fused;
use crate::support::bits::{assert_lively, assert_same_bits};
use crate::support::data::{self, DTYPES, Rng};
use crate::support::on_each_device;

fn stock(tokens: &Array, table: &QuantizedWeight) -> Array {
    let rows = |all: &Array| ops::take(all, tokens, 0).unwrap();
    let taken = QuantizedWeight {
        w: rows(&table.w),
        scales: rows(&table.scales),
        biases: table.biases.as_ref().map(rows),
        quantization: table.quantization,
    };
    taken.dequantize().unwrap()
}

on_each_device! {
    fn embedding_has_the_stock_bits() {
        let mut rng = Rng::new(131);
        for dtype in DTYPES {
            for q in data::quantizations() {
                if q.mode != Mode::Affine || !fused(&QuantizedEmbedding { quantization: q }, dtype, Precision::Exact) {
                    continue;
                }
                for (scale, dims) in [(1.0, 128), (1e-3, 384), (1e4, 128)] {
                    let table = QuantizedWeight::quantize(&rng.array(&[37, dims], dtype, scale), q).unwrap();
                    for shape in [vec![1, 1], vec![2, 5]] {
                        let tokens = rng.indices(&shape, 37);
                        let got = primitives::quantized_embedding(&tokens, &table).unwrap();
                        let expected = stock(&tokens, &table);
                        assert_same_bits(&got, &expected, format!("{dtype} {q} {shape:?}"));
                        assert_lively(&got, "embedding");
                    }
                    // stock does not unpack nothing
                    let none = rng.indices(&[0], 37);
                    let got = primitives::quantized_embedding(&none, &table).unwrap();
                    got.eval().unwrap();
                    assert_eq!(got.shape(), [0, dims]);
                    // a part of the table, and tokens that do not lie together
                    let sliced = |a: &Array| ops::slice_axis(a, 0, 1, 30).unwrap();
                    let part = QuantizedWeight {
                        w: sliced(&table.w),
                        scales: sliced(&table.scales),
                        biases: table.biases.as_ref().map(sliced),
                        quantization: q,
                    };
                    let tokens = ops::transpose(&rng.indices(&[3, 4], 29), &[1, 0]).unwrap();
                    let got = primitives::quantized_embedding(&tokens, &part).unwrap();
                    assert_same_bits(&got, &stock(&tokens, &part), format!("{dtype} {q}, views"));
                }
            }
        }
    }
}

#[test]
fn embedding_names_what_it_does_not_take() {
    mlx::set_default_device(mlx::Device::Cpu).unwrap();
    let mut rng = Rng::new(132);
    let table = |mode| {
        let q = mlx::quantization::Quantization::default_of(mode);
        QuantizedWeight::quantize(&Rng::new(7).array(&[8, 64], mlx::Dtype::Bf16, 1.0), q).unwrap()
    };
    if cfg!(not(feature = "custom-primitive")) {
        return;
    }
    let message = |tokens: &Array, table: &QuantizedWeight| {
        let got = primitives::quantized_embedding(tokens, table).and_then(|y| y.eval());
        got.unwrap_err().to_string()
    };
    let beyond = Array::from_slice(&[3_u32, 8], &[2]).unwrap();
    assert!(message(&beyond, &table(Mode::Affine)).contains("got values from 3 to 8"));
    let signed = Array::from_slice(&[3_i32], &[1]).unwrap();
    assert!(message(&signed, &table(Mode::Affine)).contains("uint32 but received int32"));
    let tokens = rng.indices(&[2], 8);
    assert!(message(&tokens, &table(Mode::Mxfp4)).contains("mxfp4"));
}
