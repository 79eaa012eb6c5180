//! Every error of `mlx`, provoked.

use mlx::primitives::{Precision, Scoring, gather_qmm_swiglu, moe_router};
use mlx::quantization::{Quantization, QuantizedWeight};
use mlx::{Array, Dtype, Error, io, ops};

use crate::support::data::{self, Rng};

#[test]
fn ops_with_wrong_shapes_say_what_arrived() {
    let a = data::array(&[1f32, 2.0, 3.0], &[3]);
    let b = data::array(&[1f32, 2.0], &[2]);
    let error = ops::add(&a, &b).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("(3)") && text.contains("(2)"), "{text}");
    assert!(matches!(ops::reshape(&a, &[2, 2]), Err(Error::InvalidArgument { .. })));
    assert!(ops::concatenate([&a, &data::array(&[1f32; 4], &[2, 2])], 0).is_err());
    assert!(ops::transpose(&a, &[0, 1]).is_err());
    assert!(ops::softmax(&a, 4, true).is_err());
}

#[test]
fn slice_of_elements_with_wrong_count_is_a_shape_error() {
    let error = Array::from_slice(&[1f32, 2.0], &[3]).unwrap_err();
    assert!(matches!(error, Error::Shape { op: "from_slice", .. }), "{error:?}");
    assert!(Array::from_slice(&[1f32], &[-1]).is_err());
    assert!(Array::from_slice(&[0u8; 4], &[i32::MAX, i32::MAX]).is_err());
    assert!(Array::from_bytes(&[0; 3], &[1], Dtype::F32).is_err());
}

#[test]
fn reading_values_as_another_type_is_a_dtype_error() {
    let a = data::array(&[1f32, 2.0], &[2]);
    let error = a.to_vec::<u32>().unwrap_err();
    assert!(matches!(error, Error::Dtype { got: Dtype::F32, .. }), "{error:?}");
    let error = a.item::<f32>().unwrap_err();
    assert!(matches!(error, Error::Shape { op: "item", .. }), "{error:?}");
}

#[test]
fn file_that_is_not_safetensors_is_an_error_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for content in [&b""[..], b"{}", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", b"\x02\0\0\0\0\0\0\0[]"]
    {
        std::fs::write(&path, content).unwrap();
        let outcome = io::load_safetensors(&path);
        assert!(outcome.is_err(), "{content:?}");
    }
    let error = io::load_safetensors(&folder.path().join("absent.safetensors")).err().unwrap();
    assert!(error.to_string().contains("absent.safetensors"), "{error}");
}

/// Arguments that fit each other, to be spoiled one at a time.
fn swiglu(
    spoil: impl FnOnce(&mut Array, &mut QuantizedWeight, &mut QuantizedWeight, &mut Array),
) -> mlx::Result<Array> {
    let mut rng = Rng::new(61);
    let q = Quantization::affine(32, 4);
    let mut gate = rng.experts([3, 8, 64], q, Dtype::F32, true);
    let mut up = rng.experts([3, 8, 64], q, Dtype::F32, true);
    let mut x = rng.array(&[2, 1, 64], Dtype::F32, 1.0);
    let mut rhs = rng.indices(&[2], 3);
    spoil(&mut x, &mut gate, &mut up, &mut rhs);
    gather_qmm_swiglu(&x, &gate, &up, None, Some(&rhs), true, false, Precision::Exact)
}

#[track_caller]
fn refused(outcome: mlx::Result<Array>, words: &[&str]) {
    match outcome {
        Err(Error::InvalidArgument { message }) => {
            assert!(message.starts_with("[gather_qmm_swiglu]"), "{message}");
            for word in words {
                assert!(message.contains(word), "`{word}` is not in: {message}");
            }
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn swiglu_arguments_that_do_not_fit_are_refused_with_what_arrived() {
    assert!(swiglu(|_, _, _, _| {}).is_ok());
    let mut rng = Rng::new(62);
    let wide = rng.array(&[2, 1, 96], Dtype::F32, 1.0);
    refused(swiglu(|x, _, _, _| *x = wide), &["96"]);
    refused(swiglu(|_, g, _, _| g.w = g.w.astype(Dtype::F32).unwrap()), &["float32"]);
    refused(swiglu(|_, g, _, _| g.biases = None), &["iases"]);
    refused(swiglu(|_, g, _, _| g.scales = ops::slice_axis(&g.scales, -1, 0, 1).unwrap()), &[]);
    refused(swiglu(|_, _, _, i| *i = i.astype(Dtype::F32).unwrap()), &["float32"]);
    let other = rng.experts([3, 9, 64], Quantization::affine(32, 4), Dtype::F32, true);
    refused(swiglu(|_, _, u, _| *u = other), &["9"]);
    let q = Quantization::affine(64, 4);
    let other = rng.experts([3, 8, 64], q, Dtype::F32, true);
    refused(swiglu(|_, _, u, _| *u = other), &[]);
    let bits = |w: &mut QuantizedWeight| w.quantization.bits = 7;
    refused(
        swiglu(|_, g, u, _| {
            bits(g);
            bits(u);
        }),
        &["7"],
    );
    let size = |w: &mut QuantizedWeight| w.quantization.group_size = 33;
    refused(
        swiglu(|_, g, u, _| {
            size(g);
            size(u);
        }),
        &[],
    );
}

#[test]
fn router_arguments_that_do_not_fit_are_refused() {
    let logits = data::array(&[1f32, 2.0, 3.0], &[1, 3]);
    for top_k in [0, -1, 4] {
        let error = moe_router(&logits, top_k, true, Scoring::Softmax).unwrap_err();
        assert!(error.to_string().contains("[moe_router]"), "{error}");
    }
    let integers = logits.astype(Dtype::I32).unwrap();
    assert!(moe_router(&integers, 1, true, Scoring::Softmax).is_err());
}

#[test]
fn expert_out_of_range_is_an_error_or_ignored_but_never_a_crash() {
    // Stock MLX does not check on the CPU; whatever comes, the process has to live.
    let _ = moe_router(&data::array(&[f32::NAN; 8], &[1, 8]), 2, true, Scoring::Softmax)
        .and_then(|(indices, scores)| mlx::eval([&indices, &scores]).map(|()| indices))
        .map(|indices| {
            assert!(indices.to_vec::<u32>().unwrap().iter().all(|i| *i < 8));
        });
}

#[test]
fn number_of_threads_below_zero_is_refused() {
    assert!(matches!(mlx::set_num_threads(-1), Err(Error::InvalidArgument { .. })));
    assert!(mlx::num_threads() >= 1);
}

#[test]
fn instruction_set_that_does_not_exist_is_refused() {
    let before = mlx::cpu_isa();
    assert!(!mlx::set_cpu_isa("altivec"));
    assert_eq!(mlx::cpu_isa(), before);
}
