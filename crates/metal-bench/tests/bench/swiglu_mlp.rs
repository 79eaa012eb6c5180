//! `swiglu_mlp` on Metal: the bits of stock's launches. Its rows are those of `gather_qmm_swiglu`, which runs every
//! quantization; here are one of each kind.

use metal_bench::{Contract, Launch, Machine, Order};

use crate::{
    elementwise::{self, Elementwise},
    glu::Activation,
    kernels::{self, Case, Mutant},
    quantized::{self, Matrices, Quantization},
    report,
    values::{Float, Random, Range},
};

const FILES: [&str; 2] = ["swiglu_mlp/kernel.metal", "swiglu_mlp/kernel_fp.metal"];

/// One of each group size, of bits in whole bytes and not, and of each mode.
fn wanted(q: Quantization) -> bool {
    !q.affine() || matches!((q.group_size, q.bits), (64, 4) | (32, 8) | (128, 3) | (64, 2))
}

fn name(q: Quantization, kind: Float, fast: bool) -> String {
    format!(
        "zmlx_swiglu_mlp{}_{}_gs_{}_b_{}{}",
        if fast { "_fast" } else { "" },
        kind.metal(),
        q.group_size,
        q.bits,
        if q.affine() { String::new() } else { format!("_{}", q.mode) }
    )
}

/// The launches that stock makes in its place.
struct Stock {
    products: Machine,
    elementwise: Elementwise,
}

impl Stock {
    fn new(contract: Contract) -> Stock {
        let products = quantized::build_single(contract, wanted).start();
        Stock { products, elementwise: elementwise::stock(contract) }
    }
}

/// Whole steps and rows and others; every activation, with biases and without.
fn cases(stock: &mut Stock, q: Quantization, kind: Float, orders: &[Order]) -> Vec<Case> {
    let (step, g) = (q.fast_alignment(), q.group_size);
    let shapes = [
        [8, step],
        [16, 2 * step],
        [24, step + g],
        [5, step],
        [12, step / 2 + g],
        [1, 3 * g],
        [9, step],
    ];
    let mut all = Vec::new();
    for (number, [n, k]) in shapes.into_iter().enumerate() {
        let range = if number % 3 == 1 { Range::Extreme } else { Range::Ordinary };
        let mut random = Random::new((number + 100 * q.bits + 10_000 * g) as u64);
        let [gate, up] = [0, 1].map(|_| Matrices::random(&mut random, q, kind, [1, n, k], range));
        let mut numbers = |n, scale| kind.bytes(&random.floats(n, scale, range));
        let x = numbers(k, 0.15);
        let bias = (number % 2 == 1).then(|| [numbers(n, 9.0), numbers(n, 9.0)]);
        let activation = Activation::by_turns(number);
        // as kernel_params.h
        let mut params: Vec<u8> = [k as i32, n as i32, i32::from(bias.is_some())]
            .iter()
            .flat_map(|n| n.to_ne_bytes())
            .collect();
        params.extend(activation.params());
        let mut launch = Launch::of(name(q, kind, q.fast(n, k)))
            .input(0, &x)
            .input(1, &gate.w)
            .input(2, &gate.scales)
            .input(3, &up.w)
            .input(4, &up.scales)
            .output(7, n * kind.size())
            .input(8, params)
            .threadgroups([1, n.div_ceil(8) as u32, 1], [32, 2, 1]);
        if q.affine() {
            launch = launch.input(5, &gate.biases).input(6, &up.biases);
        }
        if let Some([gate, up]) = &bias {
            launch = launch.input(9, gate).input(10, up);
        }
        for &order in orders {
            let mut products =
                [&gate, &up].map(|w| quantized::qmv(&mut stock.products, kind, &x, w, order));
            if let Some(biases) = &bias {
                for (product, bias) in products.iter_mut().zip(biases) {
                    *product = stock.elementwise.binary("Add", kind, product, bias);
                }
            }
            let [gate, up] = &products;
            all.push(Case {
                what: format!("{q:?} {kind:?} n={n} k={k} {range:?} {order:?}"),
                launch: launch.clone().order(order),
                expected: vec![(kind, activation.gated(&mut stock.elementwise, kind, gate, up))],
            });
        }
    }
    all
}

#[test]
fn swiglu_mlp_has_the_bits_of_stock() {
    let names: Vec<String> = (Quantization::all().into_iter().filter(|q| wanted(*q)))
        .flat_map(|q| Float::ALL.map(|kind| [true, false].map(|fast| name(q, kind, fast))))
        .flatten()
        .collect();
    let texts = FILES.map(kernels::read);
    let mut machine =
        kernels::build(Contract::Off, &texts, |kernel| names.iter().any(|n| n == kernel)).start();
    let mut stock = Stock::new(Contract::Off);
    let mut count = 0;
    for q in Quantization::all().into_iter().filter(|q| wanted(*q)) {
        for kind in Float::ALL {
            let cases = cases(&mut stock, q, kind, &Order::ALL);
            count += kernels::equal_stock(&mut machine, cases.into_iter());
        }
    }
    report("swiglu_mlp", count);
}

#[test]
fn mutants_of_swiglu_mlp_are_caught() {
    const MUTANTS: [Mutant; 5] = [
        Mutant { name: "gate twice", from: "Rows(up_w, up_scales,", to: "Rows(gate_w, up_scales," },
        Mutant {
            name: "biases of the other",
            from: "up_scales, up_biases,",
            to: "up_scales, gate_biases,",
        },
        Mutant { name: "bias of the first rows", from: "up_bias += first_row;", to: "" },
        Mutant { name: "rows of the first simdgroup", from: "y + first_row,", to: "y," },
        Mutant { name: "another share of a step", from: "fast && bits != 2 ? 2 : 1", to: "1" },
    ];
    let q = Quantization { mode: "affine", group_size: 64, bits: 4 };
    let mut stock = Stock::new(Contract::Off);
    let kinds = [Float::F16, Float::F32].into_iter();
    let cases: Vec<Case> =
        kinds.flat_map(|kind| cases(&mut stock, q, kind, &[Order::Halves])).collect();
    let wanted = |name: &str| name.ends_with("_gs_64_b_4") && !name.contains("bfloat");
    kernels::all_caught(Contract::Off, FILES[0], wanted, &MUTANTS, &cases);
}
