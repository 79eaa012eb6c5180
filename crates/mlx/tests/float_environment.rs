//! Threads that flush denormals to zero, as programs for audio and games have, get the same bits.
#![cfg(all(feature = "custom-primitive", any(target_arch = "x86_64", target_arch = "aarch64")))]
#![expect(clippy::unwrap_used, reason = "a failing test should panic where it fails")]

use std::arch::asm;

use mlx::primitives::{Glu, Precision, gather_qmm_swiglu, quantized_matmul};
use mlx::quantization::{Mode, Quantization, QuantizedWeight};
use mlx::{Array, Dtype};

#[cfg(target_arch = "x86_64")]
fn flush_denormals() {
    let mut control = 0u32;
    // SAFETY: reads MXCSR to the variable and writes it back with FTZ and DAZ set, on a thread of
    // this test that computes nothing in Rust where it would show.
    unsafe {
        asm!("stmxcsr [{}]", in(reg) &mut control, options(nostack));
        control |= 0x8040;
        asm!("ldmxcsr [{}]", in(reg) &control, options(nostack));
    }
}

#[cfg(target_arch = "aarch64")]
fn flush_denormals() {
    let mut control: u64;
    // SAFETY: sets FZ in FPCR, on a thread of this test that computes nothing in Rust where it
    // would show.
    unsafe {
        asm!("mrs {}, fpcr", out(reg) control);
        control |= 1 << 24;
        asm!("msr fpcr, {}", in(reg) control);
    }
}

/// Every code and many scales, among them some whose products are denormal.
fn weight(mode: Mode, [n, k]: [i32; 2]) -> QuantizedWeight {
    let quantization = Quantization::default_of(mode);
    let words: Vec<u32> = (0..n * k * quantization.bits / 32)
        .map(|i| (i as u32).wrapping_mul(0x9e37_79b9) ^ 0x0110_1001)
        .collect();
    let largest = if mode == Mode::Nvfp4 { 100 } else { 140 };
    let scales: Vec<u8> =
        (0..n * k / quantization.group_size).map(|i| (1 + i % largest) as u8).collect();
    QuantizedWeight {
        w: Array::from_slice(&words, &[n, k * quantization.bits / 32]).unwrap(),
        scales: Array::from_slice(&scales, &[n, k / quantization.group_size]).unwrap(),
        biases: None,
        quantization,
    }
}

/// Products of every float mode, type, precision and instruction set.
fn products(threads: i32) -> Vec<(String, Vec<u8>)> {
    mlx::set_num_threads(threads).unwrap();
    let [m, n, k] = [3, 384, 256];
    let x: Vec<f32> = (0..m * k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
    let x = Array::from_slice(&x, &[m, k]).unwrap();
    let best = mlx::cpu_isa();
    let mut results = Vec::new();
    for isa in ["amx", "avx512bf16", "avx512", "avx2", "neon", "scalar"] {
        if !mlx::set_cpu_isa(isa) {
            continue;
        }
        for mode in [Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4] {
            let w = weight(mode, [n, k]);
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                let x = x.astype(dtype).unwrap();
                for precision in [Precision::Exact, Precision::Fast] {
                    let name = format!("{isa} {mode} {dtype} {precision:?} {threads} threads");
                    let y = quantized_matmul(&x, &w, true, precision).unwrap();
                    results.push((name.clone(), y.to_bytes().unwrap()));
                    let y =
                        gather_qmm_swiglu(&x, Glu::new(&w, &w), None, None, true, false, precision);
                    results.push((name + " swiglu", y.unwrap().to_bytes().unwrap()));
                }
            }
        }
    }
    assert!(mlx::set_cpu_isa(&best));
    results
}

#[test]
fn thread_that_flushes_denormals_has_the_same_bits() {
    // First, so that tables are made and workers are started on its behalf.
    let flushing = std::thread::spawn(|| {
        flush_denormals();
        [products(1), products(4)]
    });
    let flushing = flushing.join().unwrap();
    for (threads, flushing) in [1, 4].into_iter().zip(flushing) {
        for ((name, got), (_, expected)) in flushing.iter().zip(products(threads)) {
            assert!(*got == expected, "{name}");
            assert!(got.iter().any(|b| *b != 0), "{name}: all zero");
        }
    }
}
