//! Whatever safe code passes to a wrapper, the process lives: odd arguments give a result or an
//! error, at the call or when the result is computed. Each family runs in a process of its own.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};

use mlx::fast::{self, Mask, Rope};
use mlx::primitives::{self, Precision, Scoring};
use mlx::quantization::{self, Mode, Quantization, QuantizedWeight};
use mlx::{Array, Dtype, Result, ops, random, transforms};

use crate::support::alone::alone;
use crate::support::data::{self, array};

type Reduction = fn(&Array, &[i32], bool) -> Result<Array>;
type Indexing = fn(&Array, &Array, i32) -> Result<Array>;

const AXES: [i32; 8] = [i32::MIN, -4, -2, -1, 0, 1, 3, i32::MAX];

/// Arrays that nobody expects.
fn odd() -> Vec<(&'static str, Array)> {
    let numbers = array(&[0.5f32, f32::NAN, -3.0, f32::INFINITY, 0.0, 1e30], &[2, 3]);
    let one = array(&[1f32], &[]);
    let as_type = |dtype| numbers.astype(dtype).unwrap();
    let integers = array(&[3i32, -1, 0, i32::MAX, i32::MIN, 2], &[2, 3]);
    vec![
        ("f32 [2, 3]", numbers.clone()),
        ("f32 []", one.clone()),
        ("f32 [0]", array::<f32>(&[], &[0])),
        ("f32 [0, 3]", array::<f32>(&[], &[0, 3])),
        ("f32 [3, 0]", array::<f32>(&[], &[3, 0])),
        ("f32 [1]", array(&[f32::NAN], &[1])),
        ("bf16 [2, 3]", as_type(Dtype::Bf16)),
        ("f64 [2, 3]", as_type(Dtype::F64)),
        ("c64 [2, 3]", as_type(Dtype::C64)),
        ("i32 [2, 3]", integers.clone()),
        ("u32 [2, 3]", integers.astype(Dtype::U32).unwrap()),
        ("u8 [2, 3]", integers.astype(Dtype::U8).unwrap()),
        ("i64 [3]", array(&[i64::MIN, i64::MAX, 1], &[3])),
        ("bool [2, 3]", integers.astype(Dtype::Bool).unwrap()),
        ("transposed [3, 2]", ops::transpose(&numbers, &[]).unwrap()),
        ("strided [2, 3]", data::strided(&numbers)),
        ("repeated [4, 3]", ops::broadcast_to(&one, &[4, 3]).unwrap()),
        ("huge", ops::broadcast_to(&one, &[1 << 15, 1 << 15, 1 << 15]).unwrap()),
        ("five axes", ops::reshape(&numbers, &[1, 2, 1, 3, 1]).unwrap()),
    ]
}

/// Tries one call: an error is as good as a result.
fn attempt(what: impl Debug, call: impl FnOnce() -> Result<Array>) {
    println!("{what:?}");
    let outcome = catch_unwind(AssertUnwindSafe(|| call().and_then(|a| a.eval())));
    assert!(outcome.is_ok(), "{what:?} panicked");
}

fn attempt_all(what: impl Debug, call: impl FnOnce() -> Result<Vec<Array>>) {
    println!("{what:?}");
    let outcome = catch_unwind(AssertUnwindSafe(|| call().and_then(|all| mlx::eval(&all))));
    assert!(outcome.is_ok(), "{what:?} panicked");
}

type Unary = fn(&Array) -> Result<Array>;
type Binary = fn(&Array, &Array) -> Result<Array>;
type Axis = fn(&Array, i32) -> Result<Array>;
type Axes = fn(&Array, &[i32]) -> Result<Array>;

macro_rules! table {
    ($($f:expr),* $(,)?) => { [$((stringify!($f), $f)),*] };
}

alone! {
    fn elementwise() {
        let unary: [(&str, Unary); 22] = table![
            ops::abs, ops::negative, ops::exp, ops::log, ops::log1p, ops::sqrt, ops::rsqrt,
            ops::square, ops::sin, ops::cos, ops::tanh, ops::sigmoid, ops::erf, ops::floor,
            ops::ceil, ops::round, ops::logical_not, ops::isnan, ops::isinf, ops::stop_gradient,
            ops::silu, ops::contiguous,
        ];
        let binary: [(&str, Binary); 22] = table![
            ops::add, ops::subtract, ops::multiply, ops::divide, ops::floor_divide, ops::remainder,
            ops::power, ops::maximum, ops::minimum, ops::logaddexp, ops::matmul, ops::equal,
            ops::not_equal, ops::less, ops::less_equal, ops::greater, ops::greater_equal,
            ops::logical_and, ops::logical_or, ops::swiglu, |a, b| ops::select(a, a, b), |a, b| ops::addmm(a, b, b),
        ];
        let odd = odd();
        for (name, a) in &odd {
            for (op, f) in unary {
                attempt((op, name), || f(a));
            }
            for dtype in Dtype::ALL {
                attempt(("astype", name, dtype), || ops::astype(a, *dtype));
                attempt(("view", name, dtype), || ops::view(a, *dtype));
            }
            for (other, b) in &odd {
                for (op, f) in binary {
                    attempt((op, name, other), || f(a, b));
                }
                println!("array_equal {name} {other}");
                let _ = ops::array_equal(a, b, true);
            }
        }
    }
}

alone! {
    fn reductions_and_sorting() {
        let reductions: [(&str, Reduction); 8] = table![
            ops::sum, ops::mean, ops::max, ops::min, ops::prod, ops::all, ops::any, ops::logsumexp,
        ];
        let along: [(&str, Axis); 16] = table![
            |a, i| ops::softmax(a, i, true),
            |a, i| ops::softmax(a, i, false),
            |a, i| ops::cumsum(a, i, false, true),
            |a, i| ops::cumsum(a, i, true, false),
            |a, i| ops::argmax(a, i, false),
            |a, i| ops::argmin(a, i, true),
            ops::sort,
            ops::argsort,
            |a, i| ops::argpartition(a, 1, i),
            |a, i| ops::argpartition(a, i, -1),
            |a, i| ops::argpartition(a, i32::MIN, i),
            |a, i| ops::topk(a, 1, i),
            |a, i| ops::topk(a, i, 0),
            |a, i| ops::topk(a, 0, i),
            |a, i| ops::topk(a, i32::MAX, i),
            |a, i| random::categorical(a, i, None),
        ];
        for (name, a) in odd() {
            for axes in [&[][..], &[0], &[-1, 0], &[0, 0], &[5], &[i32::MIN, i32::MAX]] {
                for (op, f) in reductions {
                    for keep in [false, true] {
                        attempt((op, name, axes, keep), || f(&a, axes, keep));
                    }
                }
            }
            for axis in AXES {
                for (op, f) in along {
                    attempt((op, name, axis), || f(&a, axis));
                }
            }
        }
    }
}

alone! {
    fn shapes() {
        let shaping: [(&str, Axes); 7] = table![
            ops::reshape, ops::transpose, ops::expand_dims, ops::squeeze, ops::broadcast_to,
            |a, s| ops::unflatten(a, 0, s),
            |a, s| ops::unflatten(a, -1, s),
        ];
        let lists: [&[i32]; 17] = [
            &[], &[-1], &[-1, 0], &[-1, -1], &[0], &[6], &[2, 3], &[3, -1, 2], &[0, 1], &[1, 1],
            &[-2, -1], &[i32::MAX, i32::MAX, 4], &[i32::MIN], &[1, 0], &[7, 2, 3], &[0, -7],
            &[1, -3, -2],
        ];
        let odd = odd();
        for (name, a) in &odd {
            for list in lists {
                for (op, f) in shaping {
                    attempt((op, name, list), || f(a, list));
                }
                attempt_all(("split", name, list), || ops::split(a, list, 0));
                attempt_all(("split", name, list), || ops::split(a, list, -1));
                for other in lists {
                    attempt(("slice", name, list, other), || ops::slice(a, list, other));
                    let steps: Vec<i32> = list.iter().map(|n| n.wrapping_sub(2)).collect();
                    attempt(("slice_strided", name, other, list, &steps), || {
                        ops::slice_strided(a, other, list, &steps)
                    });
                    attempt(("slice_strided", name, other, other, list), || {
                        ops::slice_strided(a, other, other, list)
                    });
                    for (update, b) in &odd[..6] {
                        attempt(("slice_update", name, update, list, other), || {
                            ops::slice_update(a, b, list, other)
                        });
                    }
                }
            }
            for i in AXES {
                for j in AXES {
                    attempt(("swapaxes", name, i, j), || ops::swapaxes(a, i, j));
                    attempt(("flatten", name, i, j), || ops::flatten(a, i, j));
                    attempt(("slice_axis", name, i, j), || ops::slice_axis(a, i, j, j));
                    attempt(("slice_axis", name, i, j), || ops::slice_axis(a, i, 0, j));
                    // An array of one element can be repeated into gigabytes.
                    if j != i32::MAX || a.size() != 1 {
                        attempt(("repeat", name, i, j), || ops::repeat(a, j, i));
                    }
                }
                attempt(("concatenate nothing", i), || ops::concatenate([], i));
                attempt(("stack nothing", i), || ops::stack([], i));
                for (other, b) in &odd {
                    attempt(("concatenate", name, other, i), || ops::concatenate([a, b], i));
                    attempt(("stack", name, other, i), || ops::stack([a, b], i));
                }
            }
        }
        println!("dim");
        assert!(catch_unwind(AssertUnwindSafe(|| odd[0].1.dim(i32::MIN))).is_err());
    }
}

alone! {
    fn indexing() {
        let indexing: [(&str, Indexing); 3] = table![
            ops::take, ops::take_along_axis, |a, i, axis| ops::put_along_axis(a, i, a, axis),
        ];
        let odd = odd();
        for (name, a) in &odd {
            for (other, b) in &odd {
                for axis in AXES {
                    for (op, f) in indexing {
                        attempt((op, name, other, axis), || f(a, b, axis));
                    }
                    attempt(("put_along_axis", name, other, axis), || {
                        let indices = ops::argsort(a, axis)?;
                        ops::put_along_axis(a, &indices, b, axis)
                    });
                    for size in [&[][..], &[1, 1], &[-1, 2], &[9, 9], &[0, 0]] {
                        attempt(("slice_dynamic", name, other, axis, size), || {
                            ops::slice_dynamic(a, b, &[axis], size)
                        });
                    }
                    for start in [i32::MIN, -1, 0, 1, 5] {
                        let start = array(&[start], &[1]);
                        attempt(("slice_update_dynamic", name, other, axis, &start), || {
                            ops::slice_update_dynamic(a, b, &start, &[axis])
                        });
                        attempt(("slice_update_dynamic", name, other, axis, &start), || {
                            ops::slice_update_dynamic(a, b, &start, &[axis, axis])
                        });
                    }
                }
                attempt(("gather_mm", name, other), || {
                    quantization::gather_mm(a, b, None, Some(a), true)
                });
                attempt(("gather_mm", name, other), || {
                    quantization::gather_mm(a, b, Some(b), None, false)
                });
            }
        }
    }
}

alone! {
    fn creation_and_random() {
        let shapes: [&[i32]; 8] = [
            &[], &[0], &[3, 0, 2], &[-1], &[2, -3], &[i32::MIN], &[i32::MAX, i32::MAX, i32::MAX],
            &[1 << 30, 1 << 30, 1 << 30, 16],
        ];
        let odd = odd();
        for dtype in Dtype::ALL {
            for shape in shapes {
                attempt(("zeros", shape, dtype), || ops::zeros(shape, *dtype));
                attempt(("ones", shape, dtype), || ops::ones(shape, *dtype));
                attempt(("uniform", shape, dtype), || {
                    random::uniform(0.0, f32::NAN, shape, *dtype, None)
                });
                attempt(("normal", shape, dtype), || random::normal(shape, *dtype, 0.0, -1.0, None));
                attempt(("randint", shape, dtype), || random::randint(5, -5, shape, *dtype, None));
                println!("from_bytes {shape:?} {dtype}");
                let _ = Array::from_bytes(&[1; 8], shape, *dtype);
                for (name, value) in &odd {
                    attempt(("full", shape, name, dtype), || ops::full(shape, value, *dtype));
                }
            }
            let numbers = [0.0, 1.0, -0.5, 1e300, -1e300, f64::NAN, f64::INFINITY, 300.0];
            for start in numbers {
                for step in numbers {
                    attempt(("arange", start, step, dtype), || {
                        ops::arange(start, 7.0, step, *dtype)
                    });
                }
            }
            for (n, m, k) in [(0, 0, 0), (-1, 2, 0), (2, -1, 1), (3, 3, i32::MIN), (2, 2, i32::MAX)] {
                attempt(("tri", n, m, k, dtype), || ops::tri(n, m, k, *dtype));
            }
        }
        for (name, key) in &odd {
            for n in [i32::MIN, -1, 0, 1] {
                attempt(("random::split", name, n), || random::split(key, n));
            }
            let key = Some(key);
            attempt(("uniform", name), || random::uniform(0.0, 1.0, &[3], Dtype::F32, key));
            attempt(("categorical", name), || random::categorical(&odd[0].1, -1, key));
        }
    }
}

alone! {
    fn fused_and_quantized() {
        let odd = odd();
        let modes = Mode::ALL.iter().map(|m| Quantization::default_of(*m));
        let strange = [(0, 0), (32, 0), (0, 4), (-64, 4), (64, 7), (i32::MAX, i32::MIN)];
        let quantizations: Vec<_> = modes
            .chain(strange.map(|(size, bits)| Quantization::affine(size, bits)))
            .chain([Quantization { group_size: 64, bits: 3, mode: Mode::Mxfp4 }])
            .collect();
        let numbers: [f32; 4] = [0.0, -1.0, f32::NAN, f32::INFINITY];
        for (name, x) in &odd {
            attempt(("rms_norm", name), || fast::rms_norm(x, None, f32::NAN));
            attempt(("greedy_token", name), || primitives::greedy_token(x));
            for k in [i32::MIN, -1, 0, 1, 3, i32::MAX] {
                attempt_all(("moe_router", name, k), || {
                    primitives::moe_router(x, k, true, Scoring::Sigmoid).map(|(a, b)| vec![a, b])
                });
            }
            for dims in [i32::MIN, -2, 0, 1, 2, 4, i32::MAX] {
                for base in numbers {
                    let mut rope =
                        Rope { dims, traditional: true, base, scale: f32::NAN, freqs: None };
                    attempt(("rope", name, &rope), || fast::rope(x, &rope, i32::MAX));
                    attempt(("qk_norm_rope", name, &rope), || {
                        primitives::qk_norm_rope(x, 2, None, 0.0, &rope, i32::MIN)
                    });
                    rope.freqs = Some(x.clone());
                    attempt(("rope", name, &rope), || fast::rope(x, &rope, 0));
                    attempt(("rope_dynamic", name, &rope), || fast::rope_dynamic(x, &rope, x));
                    attempt(("qk_norm_rope_dynamic", name, &rope), || {
                        primitives::qk_norm_rope_dynamic(x, dims, Some(x), 0.0, &rope, x)
                    });
                }
            }
            for q in &quantizations {
                attempt(("quantize", name, q), || {
                    QuantizedWeight::quantize(x, *q).and_then(|w| w.dequantize())
                });
            }
            for (other, y) in &odd {
                attempt(("rms_norm", name, other), || fast::rms_norm(x, Some(y), 1e-6));
                attempt(("rms_norm, ours", name, other), || primitives::rms_norm(x, y, 1e-6));
                attempt(("layer_norm", name, other), || {
                    fast::layer_norm(x, Some(y), Some(x), -1.0)
                });
                for mask in [Mask::None, Mask::Causal, Mask::Array(y)] {
                    attempt(("attention", name, other), || {
                        fast::scaled_dot_product_attention(x, y, x, f32::NAN, mask, Some(y))
                    });
                }
                for causal in [false, true] {
                    attempt(("attention, ours", name, other), || {
                        primitives::attention(x, y, y, 0.0, causal, Precision::Fast)
                    });
                }
                for lengths in [&Array::from_slice(&[i32::MIN], &[1]).unwrap(), x, y] {
                    for row in [0, -1, i32::MAX] {
                        attempt(("cache_append", name, other), || {
                            primitives::cache_append(x, y, row, lengths)
                        });
                    }
                }
                for q in &quantizations {
                    for biases in [None, Some(y.clone())] {
                        let w = QuantizedWeight {
                            w: x.clone(),
                            scales: y.clone(),
                            biases,
                            quantization: *q,
                        };
                        attempt(("dequantize", name, other, q), || w.dequantize());
                        for transpose in [false, true] {
                            quantized(name, other, x, y, &w, transpose);
                        }
                    }
                }
            }
        }
    }
}

fn quantized(name: &str, other: &str, x: &Array, y: &Array, w: &QuantizedWeight, transpose: bool) {
    let precision = Precision::Fast;
    attempt(("quantized_matmul", name, other), || quantization::quantized_matmul(y, w, transpose));
    attempt(("quantized_matmul, ours", name, other), || {
        primitives::quantized_matmul(y, w, transpose, precision)
    });
    attempt(("gather_qmm", name, other), || {
        quantization::gather_qmm(y, w, Some(x), Some(y), transpose, true)
    });
    attempt(("gather_qmm_swiglu", name, other), || {
        primitives::gather_qmm_swiglu(y, w, w, None, Some(x), transpose, false, precision)
    });
    attempt(("gather_qmm_combine", name, other), || {
        primitives::gather_qmm_combine(y, w, x, y, precision)
    });
}

/// Parts that fit each other, so that calls get past the checks of shapes, with odd ones between.
fn products() -> Vec<(String, Array, QuantizedWeight)> {
    let mut out = Vec::new();
    for (experts, n, k) in [(2, 8, 64), (1, 0, 64), (0, 8, 64), (2, 8, 0), (2, 3, 32)] {
        let w = ops::zeros(&[experts, n, k], Dtype::F32).unwrap();
        let Ok(w) = QuantizedWeight::quantize(&w, Quantization::affine(32, 4)) else { continue };
        for shape in [&[k][..], &[1, k], &[0, k], &[2, 1, k], &[3, 2, k], &[0, 1, k], &[2, 0, k]] {
            let x = ops::ones(shape, Dtype::F32).unwrap();
            out.push((format!("{shape:?} by [{experts}, {n}, {k}]"), x, w.clone()));
        }
    }
    out
}

alone! {
    fn products_with_empty_or_missing_parts() {
        for (name, x, w) in products() {
            for transpose in [true, false] {
                attempt(("quantized_matmul", &name, transpose), || {
                    quantization::quantized_matmul(&x, &w, transpose)
                });
                for precision in [Precision::Exact, Precision::Fast] {
                    attempt(("quantized_matmul, ours", &name, transpose, precision), || {
                        primitives::quantized_matmul(&x, &w, transpose, precision)
                    });
                }
                for indices in [
                    array::<u32>(&[], &[0]),
                    array(&[0u32], &[]),
                    array(&[0u32, 1], &[2]),
                    array(&[7u32], &[1]),
                    array(&[-1], &[1]),
                    array(&[1u32 << 31; 4], &[2, 2]),
                ] {
                    for (lhs, rhs) in [
                        (None, Some(&indices)),
                        (Some(&indices), None),
                        (Some(&indices), Some(&indices)),
                    ] {
                        let given = (lhs.is_some(), rhs.is_some());
                        attempt(("gather_qmm", &name, transpose, &indices, given), || {
                            quantization::gather_qmm(&x, &w, lhs, rhs, transpose, true)
                        });
                        for precision in [Precision::Exact, Precision::Fast] {
                            attempt(("swiglu", &name, &indices, given, precision), || {
                                primitives::gather_qmm_swiglu(
                                    &x, &w, &w, lhs, rhs, transpose, true, precision,
                                )
                            });
                        }
                    }
                }
            }
        }
        for (a, b) in [([2, 0, 4], [3, 4, 5]), ([2, 3, 0], [3, 0, 5]), ([0, 3, 4], [0, 4, 5])] {
            let (a, b) = (ops::ones(&a, Dtype::F32).unwrap(), ops::ones(&b, Dtype::F32).unwrap());
            for indices in [array(&[0u32, 1], &[2]), array::<u32>(&[], &[0])] {
                attempt(("gather_mm", &a, &b, &indices), || {
                    quantization::gather_mm(&a, &b, Some(&indices), Some(&indices), false)
                });
            }
        }
    }
}

alone! {
    fn transforms_and_files() {
        let odd = odd();
        let same = |x: &[Array]| Ok(x.to_vec());
        let fails = |_: &[Array]| Err(mlx::Array::from_bytes(&[1], &[], Dtype::F32).unwrap_err());
        let panics = |_: &[Array]| -> Result<Vec<Array>> { std::panic::resume_unwind(Box::new(1)) };
        let indexes = |x: &[Array]| Ok(vec![ops::take(&x[0], &x[1].astype(Dtype::I32)?, 0)?]);
        for (name, a) in &odd {
            for (other, b) in &odd {
                let (one, two) = (std::slice::from_ref(a), [a.clone(), b.clone()]);
                attempt_all(("vjp", name, other), || transforms::vjp(same, one, &two));
                attempt_all(("jvp", name, other), || transforms::jvp(same, &two, one));
                attempt_all(("vjp", name, other), || transforms::vjp(indexes, &two, &[]));
                attempt_all(("jvp", name, other), || transforms::jvp(indexes, &two, &two));
                for axes in [&[][..], &[0], &[0, 0], &[-1, 9], &[i32::MIN, i32::MAX], &[0, -1]] {
                    attempt_all(("vmap", name, other, axes), || {
                        transforms::vmap(same, &two, axes, axes)
                    });
                    attempt_all(("vmap", name, other, axes), || {
                        transforms::vmap(indexes, &two, axes, &[0])
                    });
                }
            }
            attempt_all(("fails", name), || transforms::vjp(fails, std::slice::from_ref(a), &[]));
            attempt_all(("panics", name), || transforms::vjp(panics, std::slice::from_ref(a), &[]));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("odd.safetensors");
        for tensor in [
            r#"{"dtype":"F32","shape":[-1,-1],"data_offsets":[0,4]}"#,
            r#"{"dtype":"F32","shape":[1073741824,1073741824,16],"data_offsets":[0,0]}"#,
            r#"{"dtype":"F32","shape":[1],"data_offsets":[18446744073709551608,18446744073709551612]}"#,
            r#"{"dtype":"F32","shape":[4294967297],"data_offsets":[0,4]}"#,
            r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#,
            r#"{"dtype":"F32","shape":"no","data_offsets":{}}"#,
            r#"{"dtype":7,"shape":[1],"data_offsets":[0,4]}"#,
            r#"{}"#,
            r#"[]"#,
        ] {
            let header = format!(r#"{{"a":{tensor}}}"#);
            let length = (header.len() as u64).to_le_bytes();
            std::fs::write(&path, [&length[..], header.as_bytes(), &[0; 4]].concat()).unwrap();
            attempt_all(("load_safetensors", tensor), || {
                Ok(mlx::io::load_safetensors(&path)?.arrays.into_values().collect())
            });
        }
        for (name, a) in &odd {
            println!("save_safetensors {name}");
            let _ = mlx::io::save_safetensors(&path, [("a", a), ("a", a)], [("k", "v")]);
        }
        let _ = mlx::io::save_safetensors(folder.path(), [("a", &odd[0].1)], []);
    }
}
