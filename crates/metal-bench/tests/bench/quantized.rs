//! Quantized matrices, and MLX's own launches of `gather_qmv` on them.

use std::sync::LazyLock;

use metal_bench::{Contract, Launch, Machine, Order, Program, mlx};

use crate::{
    compiler, kernels,
    values::{Float, Random, Range},
};

/// A way of quantizing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Quantization {
    /// `affine`, `mxfp4`, `mxfp8` or `nvfp4`.
    pub(crate) mode: &'static str,
    pub(crate) group_size: usize,
    pub(crate) bits: usize,
}

impl Quantization {
    pub(crate) fn all() -> Vec<Quantization> {
        let mut all = Vec::new();
        for group_size in [32, 64, 128] {
            for bits in [2, 3, 4, 5, 6, 8] {
                all.push(Quantization { mode: "affine", group_size, bits });
            }
        }
        for (mode, group_size, bits) in [("mxfp4", 32, 4), ("mxfp8", 32, 8), ("nvfp4", 16, 4)] {
            all.push(Quantization { mode, group_size, bits });
        }
        all
    }

    pub(crate) fn affine(self) -> bool {
        self.mode == "affine"
    }

    /// What K has to be a multiple of for stock's fast kernel: `qmv_fast_k_alignment` in MLX's
    /// `backend/metal/quantized.cpp`.
    pub(crate) fn fast_alignment(self) -> usize {
        let pack_factor = match self.bits {
            3 | 5 => 8,
            6 => 4,
            bits => 32 / bits,
        };
        pack_factor * if self.bits == 2 { 1 } else { 2 } * 32
    }

    /// Whether stock takes its fast kernel, as its `gather_qmv` decides.
    pub(crate) fn fast(self, n: usize, k: usize) -> bool {
        n.is_multiple_of(8) && k.is_multiple_of(self.fast_alignment())
    }
}

/// Matrices of `experts`, each of `n` rows and `k` columns, as buffers.
#[derive(Debug, Clone)]
pub(crate) struct Matrices {
    pub(crate) quantization: Quantization,
    pub(crate) experts: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) w: Vec<u8>,
    pub(crate) scales: Vec<u8>,
    /// Empty where there are none.
    pub(crate) biases: Vec<u8>,
}

impl Matrices {
    pub(crate) fn random(
        random: &mut Random,
        quantization: Quantization,
        kind: Float,
        [experts, n, k]: [usize; 3],
        range: Range,
    ) -> Matrices {
        let groups = experts * n * k / quantization.group_size;
        let w = random.bytes(experts * n * k * quantization.bits / 8);
        let (scales, biases) = if quantization.affine() {
            let scale = 2.0 / (1 << quantization.bits) as f32;
            let scales = kind.bytes(&random.floats(groups, scale, range));
            (scales, kind.bytes(&random.floats(groups, 1.0, range)))
        } else if quantization.mode == "nvfp4" {
            (random.bytes(groups), Vec::new())
        } else {
            // exponents: of everything, or so that sums stay finite
            let exponents = random.bytes(groups).into_iter();
            let near = |b: u8| if range == Range::Extreme && b < 4 { b * 85 } else { 120 + b % 8 };
            (exponents.map(near).collect(), Vec::new())
        };
        Matrices { quantization, experts, n, k, w, scales, biases }
    }

    /// The matrix of one expert.
    pub(crate) fn dequantized(&self, kind: Float, expert: usize) -> Vec<f64> {
        let Quantization { group_size, bits, mode } = self.quantization;
        let scales = if self.quantization.affine() { kind.read(&self.scales) } else { Vec::new() };
        let biases = kind.read(&self.biases);
        let first = expert * self.n * self.k;
        let code = |i: usize| {
            let bit = i * bits;
            let low = u16::from(self.w[bit / 8]);
            let high = u16::from(*self.w.get(bit / 8 + 1).unwrap_or(&0));
            ((low | high << 8) >> (bit % 8)) as u8 & (0xffu16 >> (8 - bits)) as u8
        };
        (first..first + self.n * self.k)
            .map(|i| {
                let group = i / group_size;
                match mode {
                    "affine" => {
                        f64::from(code(i)) * f64::from(scales[group]) + f64::from(biases[group])
                    }
                    "nvfp4" => e2m1(code(i)) * e4m3(self.scales[group]),
                    "mxfp4" => e2m1(code(i)) * e8m0(self.scales[group]),
                    _ => e4m3(code(i)) * e8m0(self.scales[group]),
                }
            })
            .collect()
    }
}

fn e2m1(code: u8) -> f64 {
    let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

fn e4m3(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if code < 128 { magnitude } else { -magnitude }
}

fn e8m0(code: u8) -> f64 {
    2f64.powi(i32::from(code) - 127)
}

/// Rows of activations and which matrix each meets.
#[derive(Debug, Clone)]
pub(crate) struct Routed {
    pub(crate) kind: Float,
    /// `[tokens, m, k]`
    pub(crate) x: Vec<u8>,
    pub(crate) tokens: usize,
    pub(crate) m: usize,
    pub(crate) top_k: usize,
    /// `[tokens, top_k]`
    pub(crate) experts: Vec<u32>,
}

impl Routed {
    pub(crate) fn random(
        random: &mut Random,
        kind: Float,
        [tokens, m, top_k, k]: [usize; 4],
        experts: usize,
        range: Range,
    ) -> Routed {
        // products of about 1, where activations are neither 0 nor linear
        let x = kind.bytes(&random.floats(tokens * m * k, 0.15, range));
        let experts = (0..tokens * top_k).map(|_| random.below(experts) as u32).collect();
        Routed { kind, x, tokens, m, top_k, experts }
    }

    pub(crate) fn products(&self) -> usize {
        self.tokens * self.top_k
    }

    /// The row of `per_expert` that each product meets, for each of its rows: `[tokens, top_k, m, n]`.
    pub(crate) fn chosen(&self, per_expert: &[u8], experts: usize) -> Vec<u8> {
        let row = per_expert.len() / experts;
        let rows = self.experts.iter().map(|e| &per_expert[*e as usize * row..][..row]);
        rows.flat_map(|r| r.repeat(self.m)).collect()
    }
}

/// All that stock's `gather_qmv` may choose from.
pub(crate) fn stock() -> Machine {
    static PROGRAM: LazyLock<Program> = LazyLock::new(|| build(Contract::Off, |_| true));
    PROGRAM.start()
}

pub(crate) fn build(contract: Contract, wanted: fn(Quantization) -> bool) -> Program {
    build_variants(contract, wanted, ["gather_qmv_fast", "gather_qmv"], "")
}

/// What stock's `qmv` chooses from for one matrix and one row.
pub(crate) fn build_single(contract: Contract, wanted: fn(Quantization) -> bool) -> Program {
    build_variants(contract, wanted, ["qmv_fast", "qmv"], ", false")
}

fn build_variants(
    contract: Contract,
    wanted: fn(Quantization) -> bool,
    variants: [&str; 2],
    arguments: &str,
) -> Program {
    let headers = |name: &str| {
        ["utils.h", "steel/gemm/gemm.h", "quantized_utils.h", name]
            .map(|header| format!("#include \"mlx/backend/metal/kernels/{header}\"\n"))
            .concat()
    };
    let (mut affine, mut fp) = (headers("quantized.h"), headers("fp_quantized.h"));
    for kind in Float::ALL {
        for q in Quantization::all().into_iter().filter(|q| wanted(*q)) {
            let Quantization { group_size, bits, .. } = q;
            let (text, family) = if q.affine() { (&mut affine, "affine") } else { (&mut fp, "fp") };
            for variant in variants {
                let name = stock_name(q, kind, variant);
                let t = kind.metal();
                *text += &format!(
                    "instantiate_kernel(\"{name}\", {family}_{variant}, {t}, {group_size}, {bits}{arguments})\n"
                );
            }
        }
    }
    let texts = [affine, fp].map(|t| compiler().read_text(&t, &[mlx::include()]).unwrap());
    kernels::build(contract, &texts, |_| true)
}

fn stock_name(q: Quantization, kind: Float, variant: &str) -> String {
    format!("{}_{variant}_{}_gs_{}_b_{}", q.mode, kind.metal(), q.group_size, q.bits)
}

/// `x @ w[experts]^T`, `[tokens, top_k, m, n]`, as `GatherQMM::eval_gpu` of MLX launches it for few rows.
pub(crate) fn gather_qmv(machine: &mut Machine, x: &Routed, w: &Matrices, order: Order) -> Vec<u8> {
    let q = w.quantization;
    let variant = if q.fast(w.n, w.k) { "gather_qmv_fast" } else { "gather_qmv" };
    let (n, k) = (w.n as i32, w.k as i32);
    let row_bytes = (w.k * q.bits / 32) as i64;
    let row_groups = (w.k / q.group_size) as i64;
    let mut launch = Launch::of(stock_name(q, x.kind, variant))
        .input(0, &w.w)
        .input(1, &w.scales)
        .input(3, &x.x)
        // one row of indices for each token, the same for all of its experts
        .input(4, (0..x.tokens as u32).collect::<Vec<_>>())
        .input(5, &x.experts)
        .output(6, x.products() * x.m * w.n * x.kind.size())
        .input(7, k)
        .input(8, n)
        .input(9, 2i32)
        .input(10, [x.tokens as i32, 1, x.m as i32, k])
        .input(11, [i64::from(k) * x.m as i64, i64::from(k) * x.m as i64, i64::from(k), 1])
        .input(12, 1i32)
        .input(13, [w.experts as i32, n, row_bytes as i32])
        .input(14, [row_bytes * i64::from(n), row_bytes, 1])
        .input(15, [row_groups * i64::from(n), row_groups, 1]);
    let mut next = 16;
    if q.affine() {
        launch = launch.input(2, &w.biases).input(16, [row_groups * i64::from(n), row_groups, 1]);
        next = 17;
    }
    launch = launch
        .input(next, 2i32)
        .input(next + 1, [x.tokens as i32, x.top_k as i32])
        .input(next + 2, [1i64, 0])
        .input(next + 3, [x.top_k as i64, 1])
        .order(order)
        .threadgroups([x.m as u32, w.n.div_ceil(8) as u32, x.products() as u32], [32, 2, 1]);
    if variant == "gather_qmv" {
        // its last tile moves back over the one before it
        launch = launch.allow_equal_writes();
    }
    machine.launch(&launch).unwrap_or_else(|error| panic!("{q:?} {:?}: {error}", x.kind)).only()
}

/// `x @ w^T` of one row and one matrix, as `QuantizedMatmul::eval_gpu` of MLX launches it.
pub(crate) fn qmv(
    machine: &mut Machine,
    kind: Float,
    x: &[u8],
    w: &Matrices,
    order: Order,
) -> Vec<u8> {
    let q = w.quantization;
    let variant = if q.fast(w.n, w.k) { "qmv_fast" } else { "qmv" };
    let mut launch = Launch::of(stock_name(q, kind, variant))
        .input(0, &w.w)
        .input(1, &w.scales)
        .input(3, x)
        .output(4, w.n * kind.size())
        .input(5, w.k as i32)
        .input(6, w.n as i32)
        .input(7, 0i32)
        .input(10, 0i32)
        .order(order)
        .threadgroups([1, w.n.div_ceil(8) as u32, 1], [32, 2, 1]);
    if q.affine() {
        launch = launch.input(2, &w.biases);
    }
    if variant == "qmv" {
        // its last tile moves back over the one before it
        launch = launch.allow_equal_writes();
    }
    machine.launch(&launch).unwrap_or_else(|error| panic!("{q:?} {kind:?}: {error}")).only()
}

/// The same product of dequantized matrices, in double precision.
pub(crate) fn reference(x: &Routed, w: &Matrices) -> Vec<f64> {
    let rows = x.kind.read(&x.x);
    let mut out = Vec::new();
    for (i, expert) in x.experts.iter().enumerate() {
        let matrix = w.dequantized(x.kind, *expert as usize);
        let token = i / x.top_k;
        for m in 0..x.m {
            let row = &rows[(token * x.m + m) * w.k..][..w.k];
            for n in 0..w.n {
                let weights = &matrix[n * w.k..][..w.k];
                out.push(row.iter().zip(weights).map(|(x, w)| f64::from(*x) * w).sum());
            }
        }
    }
    out
}

#[test]
fn codes_have_the_values_of_their_formats() {
    assert_eq!((e2m1(7), e2m1(9)), (6.0, -0.5));
    assert_eq!((e4m3(0x7e), e4m3(0x01), e4m3(0x80 | 0x38)), (448.0, 1.0 / 512.0, -1.0));
    assert_eq!((e8m0(127), e8m0(130)), (1.0, 8.0));
}
