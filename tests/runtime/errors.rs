//! Every error of `mlx`, provoked.

use mlx::primitives::{Glu, Precision, Scoring, gather_qmm_swiglu};
use mlx::quantization::{Quantization, QuantizedWeight};
use mlx::{Array, Dtype, Error, io, ops};

use crate::support::data::{self, Rng};
use crate::support::route::route;

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
    gather_qmm_swiglu(&x, Glu::new(&gate, &up), None, Some(&rhs), true, false, Precision::Exact)
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
        let error = route(&logits, top_k, true, Scoring::Softmax).unwrap_err();
        assert!(error.to_string().contains("[moe_router]"), "{error}");
    }
    let integers = logits.astype(Dtype::I32).unwrap();
    assert!(route(&integers, 1, true, Scoring::Softmax).is_err());
}

#[test]
fn expert_out_of_range_is_an_error_of_stock_and_fused_products() {
    for bad in [3, u32::MAX] {
        let outcome = swiglu(|_, _, _, i| *i = data::array(&[0, bad], &[2]));
        let error = outcome.and_then(|y| y.eval()).unwrap_err();
        assert!(error.to_string().contains(&bad.to_string()), "{error}");
    }
}

#[test]
fn router_of_logits_that_are_not_numbers_picks_experts_that_exist() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for logits in [[bad; 8], [0.5, bad, 0.0, bad, -1.0, 2.0, bad, 0.25]] {
            let logits = data::array(&logits, &[1, 8]);
            let (indices, _) = route(&logits, 2, true, Scoring::Softmax).unwrap();
            let indices = indices.to_vec::<u32>().unwrap();
            assert!(indices.iter().all(|i| *i < 8), "{indices:?}");
        }
    }
}

#[test]
fn sizes_that_wrap_are_refused() {
    // 2^64 elements are 0 in 64 bits.
    let wraps = [1 << 30, 1 << 30, 16];
    for (shape, dtype) in [
        (&wraps[..], Dtype::Bool),
        (&[i32::MAX, i32::MAX, 4][..], Dtype::F32),
        (&[i32::MAX, i32::MAX, 0][..], Dtype::F32),
        (&[-1, -1][..], Dtype::U8),
    ] {
        for bytes in [&[][..], &[0; 4]] {
            let error = Array::from_bytes(bytes, shape, dtype).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument { .. }), "{shape:?}: {error:?}");
        }
        let zeros = ops::zeros(shape, dtype);
        assert!(zeros.is_err(), "zeros {shape:?}");
        let one = data::array(&[1f32], &[]);
        assert!(ops::broadcast_to(&one, shape).is_err(), "broadcast_to {shape:?}");
    }
    let column = ops::broadcast_to(&data::array(&[1f32], &[]), &[i32::MAX, 1]).unwrap();
    let row = ops::broadcast_to(&data::array(&[1f32], &[]), &[4, 1, i32::MAX]).unwrap();
    assert!(ops::add(&column, &row).is_err());
}

#[test]
fn arrays_larger_than_the_machine_are_an_error_of_eval() {
    let one = data::array(&[1f32], &[]);
    let view = ops::broadcast_to(&one, &[1 << 20, 1 << 20]).unwrap(); // 4 TiB
    for a in
        [ops::exp(&view), ops::contiguous(&view), ops::sum(&ops::exp(&view).unwrap(), &[], false)]
    {
        let error = a.unwrap().eval().unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error:?}");
        assert!(error.to_string().contains("1048576"), "{error}");
    }
}

#[test]
fn bytes_that_are_no_bool_never_become_one() {
    let error = Array::from_bytes(&[0, 1, 2], &[3], Dtype::Bool).unwrap_err();
    assert!(error.to_string().contains("got 2"), "{error}");
    let a = Array::from_bytes(&[0, 1, 1], &[3], Dtype::Bool).unwrap();
    assert_eq!(a.to_vec::<bool>().unwrap(), [false, true, true]);

    let bytes = data::array(&[0u8, 1, 2, 255], &[4]);
    let error = ops::view(&bytes, Dtype::Bool).unwrap_err();
    assert!(error.to_string().contains("not_equal"), "{error}");
    assert_eq!(ops::view(&a, Dtype::U8).unwrap().to_vec::<u8>().unwrap(), [0, 1, 1]);

    let header = br#"{"m":{"dtype":"BOOL","shape":[4],"data_offsets":[0,4]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header, &[0, 1, 2, 255]].concat();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.safetensors");
    std::fs::write(&path, file).unwrap();
    let loaded = io::load_safetensors(&path).unwrap();
    assert_eq!(loaded.arrays["m"].to_vec::<bool>().unwrap(), [false, true, true, true]);
    assert_eq!(loaded.arrays["m"].to_bytes().unwrap(), [0, 1, 1, 1]);
}

#[test]
fn parts_of_a_quantized_weight_that_do_not_belong_together_are_refused() {
    use mlx::quantization::{gather_qmm, quantized_matmul};
    let mut rng = Rng::new(63);
    let good = rng.experts([3, 8, 64], Quantization::affine(32, 4), Dtype::F32, true);
    let x = rng.array(&[3, 1, 64], Dtype::F32, 1.0);
    let rhs = rng.indices(&[3], 3);
    let rows = |a: &Array, n| ops::slice_axis(a, 1, 0, n).unwrap();
    let experts = |a: &Array| ops::slice_axis(a, 0, 0, 2).unwrap();
    let spoilt = [
        QuantizedWeight { scales: rows(&good.scales, 1), ..good.clone() },
        QuantizedWeight {
            scales: rows(&good.scales, 1),
            biases: good.biases.as_ref().map(|b| rows(b, 1)),
            ..good.clone()
        },
        QuantizedWeight { biases: good.biases.as_ref().map(|b| rows(b, 2)), ..good.clone() },
        QuantizedWeight { biases: None, ..good.clone() },
        QuantizedWeight {
            scales: experts(&good.scales),
            biases: good.biases.as_ref().map(experts),
            ..good.clone()
        },
        QuantizedWeight { w: data::array(&[1u32; 8], &[8]), ..good.clone() },
        QuantizedWeight { w: good.w.astype(Dtype::I32).unwrap(), ..good.clone() },
        QuantizedWeight { quantization: Quantization::affine(32, 0), ..good.clone() },
        QuantizedWeight { quantization: Quantization::affine(0, 4), ..good.clone() },
        QuantizedWeight { quantization: Quantization::affine(-32, -4), ..good.clone() },
    ];
    for (i, w) in spoilt.iter().enumerate() {
        for outcome in [
            w.dequantize(),
            quantized_matmul(&x, w, true),
            gather_qmm(&x, w, None, Some(&rhs), true, false),
            gather_qmm_swiglu(&x, Glu::new(w, w), None, Some(&rhs), true, false, Precision::Exact),
        ] {
            assert!(matches!(outcome, Err(Error::InvalidArgument { .. })), "{i}: {outcome:?}");
        }
    }
}

#[test]
fn gpu_that_does_not_exist_is_refused() {
    if !mlx::Device::Gpu.is_available() {
        assert!(mlx::set_default_device(mlx::Device::Gpu).is_err());
        assert!(mlx::Stream::new(mlx::Device::Gpu).is_err());
        assert_eq!(mlx::default_device(), mlx::Device::Cpu);
    }
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
