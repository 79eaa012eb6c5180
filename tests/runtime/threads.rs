//! The thread pool and the instruction sets: neither changes a bit of exact products.

use mlx::primitives::{
    Glu, Precision, Scoring, gather_qmm_combine, gather_qmm_swiglu, quantized_matmul,
};
use mlx::quantization::{Quantization, QuantizedWeight};
use mlx::{Array, Device, Dtype, Stream, ops, with_default_stream};

use crate::support::alone::alone;
use crate::support::data::{DTYPES, Rng, quantizations};
use crate::support::route::route;

struct Block {
    x: Array,
    logits: Array,
    gate: QuantizedWeight,
    up: QuantizedWeight,
    down: QuantizedWeight,
}

impl Block {
    fn new(rng: &mut Rng, tokens: i32, q: Quantization, dtype: Dtype) -> Self {
        let (experts, n, k) = (8, 128, 256);
        Self {
            x: rng.array(&[1, tokens, k], dtype, 1.0),
            logits: rng.array(&[1, tokens, experts], dtype, 1.0),
            gate: rng.experts([experts, n, k], q, dtype, true),
            up: rng.experts([experts, n, k], q, dtype, true),
            down: rng.experts([experts, k, n], q, dtype, true),
        }
    }

    /// A routed block from logits to output: all fused primitives in a row.
    fn run(&self, precision: Precision) -> mlx::Result<Vec<u8>> {
        let (indices, scores) = route(&self.logits, 3, true, Scoring::Softmax)?;
        let x = ops::expand_dims(&self.x, &[-2, -3])?;
        let (gate, up) = (&self.gate, &self.up);
        let rhs = Some(&indices);
        let h = gather_qmm_swiglu(&x, Glu::new(gate, up), None, rhs, true, false, precision)?;
        gather_qmm_combine(&h, &self.down, None, &indices, &scores, precision)?.to_bytes()
    }
}

alone! {
    fn number_of_threads_does_not_change_a_bit() {
        let mut rng = Rng::new(81);
        for dtype in DTYPES {
            for tokens in [1, 5, 40] {
                let block = Block::new(&mut rng, tokens, Quantization::affine(64, 4), dtype);
                for precision in [Precision::Exact, Precision::Fast] {
                    mlx::set_num_threads(1).unwrap();
                    assert_eq!(mlx::num_threads(), 1);
                    let expected = block.run(precision).unwrap();
                    for threads in [2, 3, 7, 1] {
                        mlx::set_num_threads(threads).unwrap();
                        assert_eq!(mlx::num_threads(), threads);
                        let got = block.run(precision).unwrap();
                        assert_eq!(got, expected, "{dtype}, {tokens} tokens, {threads} threads");
                    }
                }
            }
        }
        mlx::set_num_threads(0).unwrap();
        assert!(mlx::num_threads() >= 1);
    }
}

alone! {
    fn instruction_set_does_not_change_a_bit() {
        let best = mlx::cpu_isa();
        let mut rng = Rng::new(82);
        let mut tried = vec![best.clone()];
        for dtype in DTYPES {
            for q in quantizations() {
                let block = Block::new(&mut rng, 2, q, dtype);
                assert!(mlx::set_cpu_isa(&best));
                let expected = block.run(Precision::Exact).unwrap();
                for isa in ["amx", "avx512bf16", "avx512", "avx2", "neon", "scalar"] {
                    if isa == best || !mlx::set_cpu_isa(isa) {
                        continue;
                    }
                    assert_eq!(mlx::cpu_isa(), isa);
                    if !tried.iter().any(|t| t == isa) {
                        tried.push(isa.to_owned());
                    }
                    let got = block.run(Precision::Exact).unwrap();
                    assert!(got == expected, "{dtype} {q}: {isa} differs from {best}");
                }
            }
        }
        println!("instruction sets: {}", tried.join(", "));
        assert!(tried.iter().any(|t| t == "scalar"));
    }
}

alone! {
    fn instruction_set_changes_fast_products_by_no_more_than_their_rounding() {
        let best = mlx::cpu_isa();
        let mut rng = Rng::new(83);
        for dtype in DTYPES {
            let unit = match dtype {
                Dtype::Bf16 => 2f32.powi(-8),
                Dtype::F16 => 2f32.powi(-11),
                _ => 2f32.powi(-18), // sums of some hundred terms in another order
            };
            for q in quantizations() {
                // Kernels take one row, up to 8, and blocks of more; N and K leave remainders.
                for rows in [1, 2, 3, 9, 33] {
                    let (n, k) = (142, 7 * q.group_size);
                    let x = rng.array(&[1, rows, k], dtype, 1.0);
                    let w = rng.experts([1, n, k], q, dtype, true);
                    let run = |isa: &str| {
                        assert!(mlx::set_cpu_isa(isa));
                        let y = quantized_matmul(&x, &w, true, Precision::Fast).unwrap();
                        y.astype(Dtype::F32).unwrap().to_vec::<f32>().unwrap()
                    };
                    let expected = run("scalar");
                    let squares: f32 = expected.iter().map(|v| v * v).sum();
                    let rms = (squares / expected.len() as f32).sqrt();
                    assert!(rms > 0.0);
                    for isa in ["amx", "avx512bf16", "avx512", "avx2", "neon"] {
                        if !mlx::set_cpu_isa(isa) {
                            continue;
                        }
                        for (i, (got, want)) in run(isa).iter().zip(&expected).enumerate() {
                            let bound = unit * (2.0 * want.abs() + rms);
                            assert!(
                                (got - want).abs() <= bound,
                                "{isa} {dtype} {q}, {rows} rows, output {i}: {got}, not {want}"
                            );
                        }
                    }
                }
            }
        }
        assert!(mlx::set_cpu_isa(&best));
    }
}

#[test]
fn streams_of_several_threads_at_once_have_the_same_bits() {
    let run = |seed: u64| {
        let mut rng = Rng::new(seed);
        let block = Block::new(&mut rng, 6, Quantization::affine(32, 4), Dtype::Bf16);
        let stream = Stream::new(Device::Cpu).unwrap();
        let run = || (0..8).map(|_| block.run(Precision::Exact).unwrap()).collect::<Vec<_>>();
        let results = with_default_stream(stream, run).unwrap();
        assert!(results.windows(2).all(|w| w[0] == w[1]), "seed {seed}: runs differ");
        results[0].clone()
    };
    let expected: Vec<_> = (0..4).map(run).collect();
    let threads: Vec<_> = (0..4).map(|seed| std::thread::spawn(move || run(seed))).collect();
    let got: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    assert_eq!(got, expected);
}

#[test]
fn several_streams_of_one_thread_have_the_same_bits() {
    let mut rng = Rng::new(83);
    let block = Block::new(&mut rng, 4, Quantization::affine(64, 8), Dtype::F32);
    let expected = block.run(Precision::Exact).unwrap();
    for _ in 0..3 {
        let stream = Stream::new(Device::Cpu).unwrap();
        let got = with_default_stream(stream, || block.run(Precision::Exact).unwrap()).unwrap();
        assert_eq!(got, expected);
    }
}

#[test]
fn thread_pool_changed_while_it_works_keeps_the_bits() {
    let changer = std::thread::spawn(|| {
        for i in 0..40 {
            mlx::set_num_threads(1 + i % 3).unwrap();
            std::thread::yield_now();
        }
        mlx::set_num_threads(0).unwrap();
    });
    let mut rng = Rng::new(84);
    let block = Block::new(&mut rng, 3, Quantization::affine(64, 4), Dtype::Bf16);
    let expected = block.run(Precision::Exact).unwrap();
    for _ in 0..30 {
        assert_eq!(block.run(Precision::Exact).unwrap(), expected);
    }
    changer.join().unwrap();
}

alone! {
    fn default_number_of_threads_is_what_the_process_may_use() {
        let available = std::thread::available_parallelism().unwrap().get();
        assert_eq!(mlx::num_threads() as usize, available);
        mlx::set_num_threads(available as i32 + 3).unwrap();
        assert_eq!(mlx::num_threads() as usize, available + 3);
        mlx::set_num_threads(0).unwrap();
        assert_eq!(mlx::num_threads() as usize, available);
    }
}

/// The test above on one processor of the machine.
#[test]
#[cfg(target_os = "linux")]
fn affinity_mask_limits_the_default_number_of_threads() {
    let name = "runtime::threads::default_number_of_threads_is_what_the_process_may_use::inner";
    let program = std::env::current_exe().unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap();
    let first = allowed.trim().split([',', '-']).next().unwrap();
    let mut command = std::process::Command::new("taskset");
    command.args(["-c", first]).arg(program).args(["--exact", name, "--ignored", "--nocapture"]);
    match command.output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => println!("skipped: no taskset"),
        output => {
            let output = output.unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
        }
    }
}
