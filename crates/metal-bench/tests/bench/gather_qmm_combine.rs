//! `gather_qmm_combine` on Metal: the bits of stock's launches.

use metal_bench::{Contract, Launch, Machine, Order};

use crate::{
    elementwise::{self, Elementwise},
    kernels::{self, Case, Mutant},
    quantized::{self, Matrices, Quantization, Routed},
    reduce::{self, Reduce},
    report,
    values::{Float, Random, Range},
};

/// What the kernel is asked for once. Each expert of a token has a row of its own in `x`.
struct Question {
    x: Routed,
    top_k: usize,
    scores: Vec<u8>,
    scores_kind: Float,
    down: Matrices,
    bias: Option<Vec<u8>>,
}

impl Question {
    fn tokens(&self) -> usize {
        self.x.tokens / self.top_k
    }

    /// Whether weighting and sum are in a wider type than the product.
    fn wide(&self) -> bool {
        self.scores_kind != self.x.kind
    }

    fn launch(&self, apart: usize, order: Order) -> Launch {
        let Matrices { quantization: q, n, k, experts, .. } = self.down;
        let spread = |bytes: &[u8]| match bytes.len() / experts {
            0 => Vec::new(),
            size => bytes.chunks(size).flat_map(|c| c.repeat(apart)).collect(),
        };
        let name = format!(
            "zmlx_gather_qmm_combine{}_{}_gs_{}_b_{}{}",
            if q.fast(n, k) { "_fast" } else { "" },
            self.x.kind.metal(),
            q.group_size,
            q.bits,
            if q.affine() { String::new() } else { format!("_{}", q.mode) }
        );
        // as kernel_params.h
        let mut params = Vec::new();
        let flags = [usize::from(self.wide()), usize::from(self.bias.is_some()), 0];
        for value in [k, n, self.top_k].into_iter().chain(flags) {
            params.extend((value as i32).to_ne_bytes());
        }
        let (words, groups) = (apart * n * k * q.bits / 32, apart * n * k / q.group_size);
        for value in [words, groups, groups, apart * n] {
            params.extend((value as i64).to_ne_bytes());
        }
        let mut launch = Launch::of(name)
            .input(0, &self.x.x)
            .input(1, &self.x.experts)
            .input(2, &self.scores)
            .input(3, spread(&self.down.w))
            .input(4, spread(&self.down.scales))
            .output(6, self.tokens() * n * self.x.kind.size())
            .input(7, params)
            .order(order)
            .threadgroups(
                [n.div_ceil(4) as u32, self.tokens() as u32, 1],
                [32, self.top_k.min(8) as u32, 1],
            );
        if q.affine() {
            launch = launch.input(5, spread(&self.down.biases));
        }
        match &self.bias {
            Some(bias) => launch.input(8, spread(bias)),
            None => launch,
        }
    }
}

/// The launches that stock makes in its place.
struct Stock {
    products: Machine,
    elementwise: Elementwise,
    reduce: Reduce,
}

impl Stock {
    fn new(contract: Contract, wanted: fn(Quantization) -> bool) -> Stock {
        let products = match contract {
            Contract::Off => quantized::stock(),
            Contract::Fast => quantized::build(contract, wanted).start(),
        };
        Stock {
            products,
            elementwise: elementwise::stock(contract),
            reduce: reduce::stock(contract),
        }
    }

    fn run(&mut self, question: &Question, order: Order) -> Vec<u8> {
        let Question { x, top_k, scores, scores_kind: wide, down, bias } = question;
        let mut y = quantized::gather_qmv(&mut self.products, x, down, order);
        if let Some(bias) = bias {
            y = self.elementwise.binary("Add", x.kind, &y, &x.chosen(bias, down.experts));
        }
        let y = wide.bytes(&x.kind.read(&y));
        let weights =
            scores.chunks(wide.size()).flat_map(|s| s.repeat(down.n)).collect::<Vec<u8>>();
        let weighted = self.elementwise.binary("Multiply", *wide, &y, &weights);
        let sum = self.reduce.columns(*wide, &weighted, [question.tokens(), *top_k, down.n]);
        x.kind.bytes(&wide.read(&sum))
    }
}

/// The cases of one quantization and type: whole steps and rows and others, one expert to more than one round of simdgroups,
/// scores of both types, with and without a bias.
fn cases(stock: &mut Stock, q: Quantization, kind: Float, orders: &[Order]) -> Vec<Case> {
    let (step, g) = (q.fast_alignment(), q.group_size);
    let shapes = [
        [8, step, 8],
        [16, 2 * step, 4],
        [8, step + g, 3],
        [24, step - g, 1],
        [5, g, 8],
        [12, step, 6],
        [7, step / 2 + g, 10],
        [8, step, 17],
        [2, g, 2],
    ];
    let mut all = Vec::new();
    for (number, [n, k, top_k]) in shapes.into_iter().enumerate() {
        let range = if number % 4 == 1 { Range::Extreme } else { Range::Ordinary };
        let mut random = Random::new((number + 100 * q.bits + 10_000 * q.group_size) as u64);
        let down = Matrices::random(&mut random, q, kind, [4, n, k], range);
        let tokens = 1 + number % 2;
        let x = Routed::random(&mut random, kind, [tokens * top_k, 1, 1, k], 4, range);
        let scores_kind = if number % 3 == 1 { Float::F32 } else { kind };
        let scores = scores_kind.bytes(&random.floats(tokens * top_k, 0.5, Range::Ordinary));
        let bias = (number % 3 == 2).then(|| kind.bytes(&random.floats(4 * n, 2.0, range)));
        let question = Question { x, top_k, scores, scores_kind, down, bias };
        for (i, &order) in orders.iter().enumerate() {
            all.push(Case {
                what: format!("{q:?} {kind:?} n={n} k={k} top_k={top_k} {range:?} {order:?}"),
                expected: vec![(kind, stock.run(&question, order))],
                launch: question.launch(1 + (number + i) % 2, order),
            });
        }
    }
    all
}

const FILES: [&str; 2] = ["gather_qmm_combine/kernel.metal", "gather_qmm_combine/kernel_fp.metal"];

#[test]
fn combine_has_the_bits_of_stock() {
    let program = kernels::build(Contract::Off, &FILES.map(kernels::read), |_| true);
    let mut stock = Stock::new(Contract::Off, |_| true);
    let mut machine = program.start();
    let mut count = 0;
    for q in Quantization::all() {
        for kind in Float::ALL {
            let cases = cases(&mut stock, q, kind, &[Order::Halves, Order::OneByOne]);
            count += kernels::equal_stock(&mut machine, cases.into_iter());
        }
    }
    report("gather_qmm_combine", count);
}

#[test]
fn combine_has_the_bits_of_stock_when_both_contract() {
    fn wanted(q: Quantization) -> bool {
        q.group_size == 64 || q.mode == "mxfp4"
    }
    if !metal_bench::Compiler::can_contract() {
        crate::say("skipped: this processor cannot fuse");
        return;
    }
    let program = kernels::build(Contract::Fast, &FILES.map(kernels::read), |name| {
        name.contains("_float_") && (name.contains("gs_64") || name.contains("mxfp4"))
    });
    let mut stock = Stock::new(Contract::Fast, wanted);
    let mut machine = program.start();
    let mut count = 0;
    for q in Quantization::all().into_iter().filter(|q| wanted(*q)) {
        let cases = cases(&mut stock, q, Float::F32, &[Order::Halves]);
        count += kernels::equal_stock(&mut machine, cases.into_iter());
    }
    report("gather_qmm_combine, contracted", count);
}

#[test]
fn mutants_of_combine_are_caught() {
    const MUTANTS: [Mutant; 12] = [
        Mutant {
            name: "no barrier before the sum",
            from: "threadgroup_barrier(mem_flags::mem_threadgroup);\n  const int row",
            to: "const int row",
        },
        Mutant {
            name: "a barrier for other memory",
            from: "threadgroup_barrier(mem_flags::mem_threadgroup);\n  const int row",
            to: "threadgroup_barrier(mem_flags::mem_device);\n  const int row",
        },
        Mutant {
            name: "a barrier in one simdgroup only",
            from: "threadgroup_barrier(mem_flags::mem_threadgroup);\n  const int row",
            to: "if (simd_gid == 0) {\n    threadgroup_barrier(mem_flags::mem_threadgroup);\n  }\n  const int row",
        },
        Mutant {
            name: "simdgroups on the same products",
            from: "weighted + k * qmv_rows",
            to: "weighted + (k / 2) * qmv_rows",
        },
        Mutant {
            name: "one expert too few",
            from: "k < params.top_k; k +=",
            to: "k < params.top_k - 1; k +=",
        },
        Mutant {
            name: "only the first round of experts",
            from: "k < params.top_k; k += size.y",
            to: "k < int(size.y); k += size.y",
        },
        Mutant {
            name: "another order of the sum",
            from: "for (int first = 0; first < min(count, 8); first++)",
            to: "for (int first = min(count, 8) - 1; first >= 0; first--)",
        },
        Mutant {
            name: "rows added one by one",
            from: "first < min(count, 8)",
            to: "first < min(count, 1)",
        },
        Mutant {
            name: "summed in float32",
            from: ": column_sum<T>(column, params.top_k)",
            to: ": static_cast<T>(column_sum<float>(column, params.top_k))",
        },
        Mutant {
            name: "scores of the first token",
            from: "        scores,\n        first_slot + k,",
            to: "        scores,\n        k,",
        },
        Mutant {
            name: "every simdgroup writes",
            from: "simd_gid == 0 && row <= last_row",
            to: "row <= last_row",
        },
        Mutant {
            name: "a row too many is written",
            from: "simd_gid == 0 && row <= last_row",
            to: "simd_gid == 0 && row < qmv_rows",
        },
    ];
    let q = Quantization { mode: "affine", group_size: 64, bits: 4 };
    let mut stock = Stock::new(Contract::Off, |_| true);
    let kinds = [Float::F16, Float::F32].into_iter();
    let cases: Vec<Case> =
        kinds.flat_map(|kind| cases(&mut stock, q, kind, &[Order::Halves])).collect();
    let wanted = |name: &str| name.ends_with("_gs_64_b_4") && !name.contains("bfloat");
    kernels::all_caught(Contract::Off, FILES[0], wanted, &MUTANTS, &cases);
}
