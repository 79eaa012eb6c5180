//! `gather_qmm_swiglu` on Metal: the bits of stock's launches.

use std::sync::LazyLock;

use metal_bench::{Contract, Launch, Machine, Order, Program};

use crate::{
    elementwise::{self, Elementwise},
    glu::Activation,
    kernels::{self, Case, Mutant},
    quantized::{self, Matrices, Quantization, Routed},
    report,
    values::{Float, Random, Range},
};

/// Biases of both projections, `[experts, n]`.
struct Bias {
    gate: Vec<u8>,
    up: Vec<u8>,
}

/// What the kernel is asked for once.
struct Question {
    x: Routed,
    gate: Matrices,
    up: Matrices,
    bias: Option<Bias>,
    activation: Activation,
}

impl Question {
    fn name(&self) -> String {
        let q = self.gate.quantization;
        format!(
            "zmlx_gather_qmm_swiglu{}_{}_gs_{}_b_{}{}",
            if q.fast(self.gate.n, self.gate.k) { "_fast" } else { "" },
            self.x.kind.metal(),
            q.group_size,
            q.bits,
            if q.affine() { String::new() } else { format!("_{}", q.mode) }
        )
    }

    /// As `kernel_params.h`, for matrices that lie `apart` times their size apart.
    fn params(&self, apart: usize) -> Vec<u8> {
        let Matrices { quantization: q, n, k, .. } = self.gate;
        let mut bytes = Vec::new();
        for value in [k, n, self.x.m, 2] {
            bytes.extend((value as i32).to_ne_bytes());
        }
        let (words, groups) = (apart * n * k * q.bits / 32, apart * n * k / q.group_size);
        for value in
            [self.x.m * k, words, groups, groups, words, groups, groups, apart * n, apart * n]
        {
            bytes.extend((value as i64).to_ne_bytes());
        }
        bytes.extend(i32::from(self.bias.is_some()).to_ne_bytes());
        bytes.extend(self.activation.params());
        bytes
    }

    fn launch(&self, apart: usize, order: Order) -> Launch {
        let Question { x, gate, up, bias, .. } = self;
        let spread = |bytes: &[u8]| match bytes.len() / gate.experts {
            0 => Vec::new(),
            size => bytes.chunks(size).flat_map(|c| c.repeat(apart)).collect(),
        };
        let mut launch = Launch::of(self.name())
            .input(0, &x.x)
            .input(1, (0..x.tokens as u32).collect::<Vec<_>>())
            .input(2, &x.experts)
            .input(3, spread(&gate.w))
            .input(4, spread(&gate.scales))
            .input(5, spread(&up.w))
            .input(6, spread(&up.scales))
            .output(9, x.products() * x.m * gate.n * x.kind.size())
            .input(10, self.params(apart))
            .input(11, [x.tokens as i32, x.top_k as i32])
            .input(12, [1i64, 0])
            .input(13, [x.top_k as i64, 1])
            .order(order)
            .threadgroups([x.m as u32, gate.n.div_ceil(8) as u32, x.products() as u32], [32, 2, 1]);
        if gate.quantization.affine() {
            launch = launch.input(7, spread(&gate.biases)).input(8, spread(&up.biases));
        }
        if let Some(bias) = bias {
            launch = launch.input(14, spread(&bias.gate)).input(15, spread(&bias.up));
        }
        launch
    }
}

/// The launches that stock makes in its place: two products and what is between them.
struct Stock {
    products: Machine,
    elementwise: Elementwise,
}

impl Stock {
    fn new(contract: Contract, wanted: fn(Quantization) -> bool) -> Stock {
        let products = match contract {
            Contract::Off => quantized::stock(),
            Contract::Fast => quantized::build(contract, wanted).start(),
        };
        Stock { products, elementwise: elementwise::stock(contract) }
    }

    fn run(&mut self, question: &Question, order: Order) -> Vec<u8> {
        let Question { x, gate, up, bias, activation } = question;
        let mut gate_out = quantized::gather_qmv(&mut self.products, x, gate, order);
        let mut up_out = quantized::gather_qmv(&mut self.products, x, up, order);
        let ops = &mut self.elementwise;
        let kind = x.kind;
        if let Some(bias) = bias {
            gate_out = ops.binary("Add", kind, &gate_out, &x.chosen(&bias.gate, gate.experts));
            up_out = ops.binary("Add", kind, &up_out, &x.chosen(&bias.up, up.experts));
        }
        activation.gated(ops, kind, &gate_out, &up_out)
    }
}

/// Shapes `[n, k]` that reach each path of the kernel: whole steps and rows, a last step of any length,
/// rows that do not fill a threadgroup, a simdgroup or anything.
fn shapes(q: Quantization) -> [[usize; 2]; 13] {
    let step = q.fast_alignment();
    let g = q.group_size;
    [
        [8, step],
        [16, 2 * step],
        [8, step + g],
        [24, step - g],
        [1, g],
        [3, 2 * step],
        [4, step / 2],
        [5, step + 3 * g],
        [9, g],
        [12, step],
        [15, 3 * g],
        [18, step / 2 + g],
        [8, 3 * step],
    ]
}

/// The cases of one quantization and type: every shape, the activations by turns, ordinary and extreme.
fn cases(stock: &mut Stock, q: Quantization, kind: Float, orders: &[Order]) -> Vec<Case> {
    let mut all = Vec::new();
    for (number, [n, k]) in shapes(q).into_iter().enumerate() {
        let range = if number % 3 == 1 { Range::Extreme } else { Range::Ordinary };
        let mut random = Random::new((number + 100 * q.bits + 10_000 * q.group_size) as u64);
        let [gate, up] = [0, 1].map(|_| Matrices::random(&mut random, q, kind, [3, n, k], range));
        let [tokens, m, top_k] = [[1, 1, 2], [2, 1, 3], [1, 3, 1]][number % 3];
        let x = Routed::random(&mut random, kind, [tokens, m, top_k, k], 3, range);
        let mut one = || kind.bytes(&random.floats(3 * n, 9.0, range));
        let bias = (number % 2 == 1).then(|| Bias { gate: one(), up: one() });
        let activation = Activation::by_turns(number);
        let question = Question { x, gate, up, bias, activation };
        for (i, &order) in orders.iter().enumerate() {
            all.push(Case {
                what: format!("{q:?} {kind:?} n={n} k={k} {range:?} {order:?}"),
                expected: vec![(kind, stock.run(&question, order))],
                // gate and up that are rows of one tensor lie further apart
                launch: question.launch(1 + (number + i) % 2, order),
            });
        }
    }
    all
}

const FILES: [&str; 2] = ["gather_qmm_swiglu/kernel.metal", "gather_qmm_swiglu/kernel_fp.metal"];

#[test]
fn swiglu_has_the_bits_of_stock() {
    static PROGRAM: LazyLock<Program> =
        LazyLock::new(|| kernels::build(Contract::Off, &FILES.map(kernels::read), |_| true));
    let mut stock = Stock::new(Contract::Off, |_| true);
    let mut machine = PROGRAM.start();
    let mut count = 0;
    for q in Quantization::all() {
        for kind in Float::ALL {
            let cases = cases(&mut stock, q, kind, &Order::ALL);
            count += kernels::equal_stock(&mut machine, cases.into_iter());
        }
    }
    report("gather_qmm_swiglu", count);
}

/// Also where the compiler makes one operation of a product and a sum, wherever it may.
#[test]
fn swiglu_has_the_bits_of_stock_when_both_contract() {
    fn wanted(q: Quantization) -> bool {
        !q.affine() || q.group_size == 64
    }
    if !metal_bench::Compiler::can_contract() {
        crate::say("skipped: this processor cannot fuse");
        return;
    }
    let program = kernels::build(Contract::Fast, &FILES.map(kernels::read), |name| {
        !name.contains("bfloat")
            && !name.contains("gs_128")
            && (!name.contains("gs_32") || name.contains("fp"))
    });
    let mut stock = Stock::new(Contract::Fast, wanted);
    let mut machine = program.start();
    let mut count = 0;
    for q in Quantization::all().into_iter().filter(|q| wanted(*q)) {
        for kind in [Float::F16, Float::F32] {
            let cases = cases(&mut stock, q, kind, &[Order::Halves]);
            count += kernels::equal_stock(&mut machine, cases.into_iter());
        }
    }
    report("gather_qmm_swiglu, contracted", count);

    let mutant = Mutant {
        name: "a product and a sum in one",
        from: "#pragma clang fp contract(off)",
        to: "",
    };
    // a rounding more or less changes a result here and there: many rows
    let q = Quantization { mode: "affine", group_size: 64, bits: 4 };
    let mut random = Random::new(1);
    let mut matrices =
        || Matrices::random(&mut random, q, Float::F32, [1, 512, 64], Range::Ordinary);
    let (gate, up) = (matrices(), matrices());
    let x = Routed::random(&mut random, Float::F32, [1, 2, 1, 64], 1, Range::Ordinary);
    let question = Question { x, gate, up, bias: None, activation: Activation::GeluTanh };
    let case = Case {
        what: "gelu".to_owned(),
        launch: question.launch(1, Order::Halves),
        expected: vec![(Float::F32, stock.run(&question, Order::Halves))],
    };
    let wanted = |name: &str| name.ends_with("swiglu_float_gs_64_b_4");
    kernels::all_caught(Contract::Fast, FILES[0], wanted, &[mutant], &[case]);
}

#[test]
fn mutants_of_swiglu_are_caught() {
    const MUTANTS: [Mutant; 22] = [
        Mutant {
            name: "scales of the wrong row",
            from: "const float scale = scales[row * row_groups];\n    const float bias = biases[row * row_groups];\n    return qdot<",
            to: "const float scale = scales[row];\n    const float bias = biases[row * row_groups];\n    return qdot<",
        },
        Mutant { name: "a step too many", from: "fast ? k < K :", to: "fast ? k <= K :" },
        Mutant {
            name: "one row too many",
            from: "min(params.N - first_row, qmv_rows) - 1",
            to: "min(params.N - first_row, qmv_rows)",
        },
        Mutant { name: "one row too few", from: "row <= last_row", to: "row < last_row" },
        Mutant {
            name: "stride of the other matrix",
            from: "up_w + expert * params.up_w_stride",
            to: "up_w + expert * params.N",
        },
        Mutant {
            name: "x of the wrong token",
            from: "x += matrix * params.x_stride",
            to: "x += tid.z * params.x_stride",
        },
        Mutant { name: "x of the wrong row", from: "+ int64_t(tid.x) * params.K", to: "" },
        Mutant { name: "y of the wrong row", from: "* params.M + tid.x)", to: "* params.M)" },
        Mutant {
            name: "lanes that share an x",
            from: "x += lane * Rows::num_values;",
            to: "x += lane;",
        },
        Mutant { name: "sums that begin with anything", from: "result[i] = 0;", to: ";" },
        Mutant {
            name: "weights that stand still",
            from: "w += step / pack_values * pack_bytes;",
            to: "",
        },
        Mutant { name: "a bias that stands still", from: "biases += step / group_size;", to: "" },
        Mutant { name: "another share of a step", from: "fast && bits != 2 ? 2 : 1", to: "1" },
        Mutant {
            name: "silu not rounded",
            from: "return Multiply()(activation == 1 ? gelu_tanh(gate) : silu(gate), up);",
            to: "return activation == 1 ? T(gelu_tanh(gate) * up) : T(float(gate) * float(Sigmoid()(gate)) * float(up));",
        },
        Mutant {
            name: "another exponential",
            from: "return Multiply()(x, Sigmoid()(x));",
            to: "return Multiply()(x, T(1 / (1 + metal::fast::exp(-float(x)))));",
        },
        Mutant {
            name: "gate and up exchanged",
            from: "y[row] = gated(gate, up,",
            to: "y[row] = gated(up, gate,",
        },
        Mutant {
            name: "a sum without one lane",
            from: "T up = static_cast<T>(simd_sum(sums[qmv_rows + row]));",
            to: "T up = 0;\n    if (lane < 31) {\n      up = static_cast<T>(simd_sum(sums[qmv_rows + row]));\n    }",
        },
        Mutant {
            name: "two lanes that write",
            from: "if (lane == 0) {\n      if (params.has_bias",
            to: "if (lane <= 1) {\n      if (params.has_bias",
        },
        Mutant {
            name: "bias of the first rows",
            from: "up_bias += expert * params.up_bias_stride + first_row;",
            to: "up_bias += expert * params.up_bias_stride;",
        },
        Mutant {
            name: "no cut below",
            from: "up = Minimum()(Maximum()(up, static_cast<T>(-limit)), static_cast<T>(limit));",
            to: "up = Minimum()(up, static_cast<T>(limit));",
        },
        Mutant {
            name: "strides of the other indices",
            from: "rhs_indices[broadcast_offset(tid.z, shape, rhs_strides",
            to: "rhs_indices[broadcast_offset(tid.z, shape, lhs_strides",
        },
        Mutant {
            name: "simdgroups on the same rows",
            from: "(tid.y * qmv_simdgroups + simd_gid) * qmv_rows",
            to: "tid.y * qmv_simdgroups * qmv_rows",
        },
    ];
    let q = Quantization { mode: "affine", group_size: 64, bits: 4 };
    let mut stock = Stock::new(Contract::Off, |_| true);
    // one is seen in rounding, another only without
    let kinds = [Float::F16, Float::F32].into_iter();
    let cases: Vec<Case> =
        kinds.flat_map(|kind| cases(&mut stock, q, kind, &[Order::Halves])).collect();
    let wanted = |name: &str| name.ends_with("_gs_64_b_4") && !name.contains("bfloat");
    kernels::all_caught(Contract::Off, FILES[0], wanted, &MUTANTS, &cases);
}
