//! `qk_norm_rope` on Metal: the bits of stock's launches.

use metal_bench::{Contract, Launch, Order};

use crate::{
    elementwise::{self, Elementwise},
    kernels::{self, Case, Mutant},
    report,
    rows::{self, NormRope, Rope},
    values::{Float, Random, Range},
};

const FILE: &str = "qk_norm_rope/kernel.metal";

/// What the kernel is asked for once.
struct Question {
    kind: Float,
    batch: usize,
    tokens: usize,
    heads: usize,
    size: usize,
    /// `[batch, tokens, heads, size]`
    x: Vec<u8>,
    weight: Option<Vec<u8>>,
    eps: f32,
    input_scale: f32,
    rope: Rope,
    /// Numbers between two heads that belong to others.
    gap: usize,
}

impl Question {
    /// `x` with gaps behind its heads, of numbers that change every result.
    fn spread(&self) -> Vec<u8> {
        let head = self.size * self.kind.size();
        let gap = self.kind.bytes(&vec![1e4; self.gap]);
        self.x.chunks(head).flat_map(|h| [h, &gap].concat()).collect()
    }

    fn launch(&self, order: Order) -> Launch {
        let Question { kind, batch, tokens, heads, size, rope, .. } = self;
        let head = (size + self.gap) as i64;
        let token = head * *heads as i64;
        let single = *tokens == 1 && rope.offsets.len() == 1 && self.gap == 0;
        // as kernel_params.h
        let mut params = Vec::new();
        for value in [token * *tokens as i64, token, head, 1, i64::from(rope.offsets.len() > 1)] {
            params.extend(value.to_ne_bytes());
        }
        for value in [*size as i32, rope.dims as i32] {
            params.extend(value.to_ne_bytes());
        }
        for flag in [self.weight.is_some(), rope.freqs.is_some(), rope.traditional, single] {
            params.extend(i32::from(flag).to_ne_bytes());
        }
        for value in [self.eps, rope.base.log2(), rope.scale, self.input_scale] {
            params.extend(value.to_ne_bytes());
        }
        let mut launch = Launch::of(format!("zmlx_qk_norm_rope_{}", kind.metal()))
            .input(0, self.spread())
            .input(1, &rope.offsets)
            .output(4, self.x.len())
            .input(5, params)
            .order(order)
            .threadgroups(
                [*tokens as u32, *heads as u32, *batch as u32],
                [rows::group(*size), 1, 1],
            );
        if let Some(weight) = &self.weight {
            launch = launch.input(2, weight);
        }
        match &rope.freqs {
            Some(freqs) => launch.input(3, freqs),
            None => launch,
        }
    }
}

/// Stock's launches in its place.
struct Stock {
    elementwise: Elementwise,
    kernels: NormRope,
}

impl Stock {
    fn new(contract: Contract) -> Option<Stock> {
        let kernels = NormRope::new(contract, &rows::source()?);
        Some(Stock { elementwise: elementwise::stock(contract), kernels })
    }

    fn run(&mut self, question: &Question, order: Order) -> Vec<u8> {
        let Question { kind, batch, tokens, heads, size, rope, .. } = question;
        let mut x = question.x.clone();
        if let Some(weight) = &question.weight {
            x = self.kernels.norm(*kind, &x, weight, question.eps, order);
        }
        // transposed
        let head = size * kind.size();
        let at = |b, h, l| ((b * tokens + l) * heads + h) * head;
        let mut y = Vec::new();
        for b in 0..*batch {
            for h in 0..*heads {
                for l in 0..*tokens {
                    y.extend(&x[at(b, h, l)..][..head]);
                }
            }
        }
        if question.input_scale != 1.0 {
            let rotated = rope.dims * kind.size();
            let parts: Vec<u8> = y.chunks(head).flat_map(|h| &h[..rotated]).copied().collect();
            let factors = vec![question.input_scale; parts.len() / kind.size()];
            let parts = self.elementwise.binary("Multiply", *kind, &parts, &kind.bytes(&factors));
            for (whole, part) in y.chunks_mut(head).zip(parts.chunks(rotated)) {
                whole[..rotated].copy_from_slice(part);
            }
        }
        self.kernels.rope(*kind, &y, [*batch, *heads, *tokens, *size], rope)
    }
}

/// Heads of models and others; whole and in part, one token and several, one offset and one for each row.
fn questions(kind: Float) -> Vec<Question> {
    let shapes = [
        // batch, tokens, heads, size, dims
        [1, 1, 4, 128, 128],
        [1, 1, 3, 64, 64],
        [2, 3, 2, 64, 64],
        [1, 2, 5, 256, 64],
        [3, 1, 2, 80, 80],
        [1, 4, 1, 96, 32],
        [1, 1, 2, 512, 512],
        [2, 1, 1, 20, 2],
        [1, 1, 2, 1024, 1024],
        [2, 2, 6, 128, 64],
        [1, 1, 1, 192, 192],
        [1, 5, 2, 130, 126],
    ];
    let mut all = Vec::new();
    for (number, [batch, tokens, heads, size, dims]) in shapes.into_iter().enumerate() {
        let mut random = Random::new(number as u64 + 31);
        let range = if number % 5 == 3 { Range::Extreme } else { Range::Ordinary };
        let mut one = |len, scale| random.floats(len, scale, range);
        let x = kind.bytes(&one(batch * tokens * heads * size, 4.0));
        let weight = (number % 4 != 1).then(|| kind.bytes(&one(size, 2.0)));
        let freqs = (number % 3 == 1).then(|| {
            (0..dims / 2).map(|i| 150_000f32.powf(2.0 * i as f32 / dims as f32) * 1.1).collect()
        });
        let position = [0, 1, 77, 4096, 100_000][number % 5];
        let offsets = match number % 2 {
            1 => (0..batch as i32).map(|b| position + 13 * b).collect(),
            _ => vec![position],
        };
        let rope = Rope {
            dims,
            traditional: number % 3 == 2,
            base: [10_000.0, 1e6, 5e5][number % 3],
            scale: if number % 4 == 3 { 0.25 } else { 1.0 },
            freqs,
            offsets,
        };
        let input_scale = if number % 4 == 1 { 1.3465 } else { 1.0 };
        let gap = if number % 4 == 2 { 24 } else { 0 };
        let eps = if number % 2 == 0 { 1e-6 } else { 1e-5 };
        all.push(Question {
            kind,
            batch,
            tokens,
            heads,
            size,
            x,
            weight,
            eps,
            input_scale,
            rope,
            gap,
        });
    }
    all
}

fn cases(stock: &mut Stock, kind: Float, orders: &[Order]) -> Vec<Case> {
    let mut all = Vec::new();
    for question in questions(kind) {
        let Question { batch, tokens, heads, size, rope, .. } = &question;
        for &order in orders {
            all.push(Case {
                what: format!("{kind:?} {batch} {tokens} {heads} {size} {rope:?} {order:?}"),
                launch: question.launch(order),
                expected: vec![(kind, stock.run(&question, order))],
            });
        }
    }
    all
}

fn compare(contract: Contract, orders: &[Order]) -> Option<usize> {
    let mut stock = Stock::new(contract)?;
    let mut machine = kernels::build(contract, &[kernels::read(FILE)], |_| true).start();
    let all = Float::ALL.into_iter().flat_map(|kind| cases(&mut stock, kind, orders));
    Some(kernels::equal_stock(&mut machine, all))
}

#[test]
fn qk_norm_rope_has_the_bits_of_stock() {
    if let Some(count) = compare(Contract::Off, &Order::ALL) {
        report("qk_norm_rope", count);
    }
}

#[test]
fn qk_norm_rope_has_the_bits_of_stock_when_both_contract() {
    if !metal_bench::Compiler::can_contract() {
        return crate::say("skipped: this processor cannot fuse");
    }
    if let Some(count) = compare(Contract::Fast, &[Order::Halves]) {
        report("qk_norm_rope, contracted", count);
    }
}

#[test]
fn mutants_of_qk_norm_rope_are_caught() {
    const MUTANTS: [Mutant; 14] = [
        Mutant {
            name: "precise cosine",
            from: "metal::fast::cos(theta)",
            to: "metal::precise::cos(theta)",
        },
        Mutant { name: "fast power", from: "metal::exp2(-d", to: "metal::fast::exp2(-d" },
        Mutant {
            name: "frequency of the other pair",
            from: "freqs[pair]",
            to: "freqs[pairs - 1 - pair]",
        },
        Mutant {
            name: "pairs of the whole head",
            from: "index_1 + pairs",
            to: "index_1 + size / 2",
        },
        Mutant {
            name: "a sign",
            from: "x1 * costheta - x2 * sintheta",
            to: "x1 * costheta + x2 * sintheta",
        },
        Mutant { name: "the first position", from: "tid.x + uint(start)", to: "uint(start)" },
        Mutant {
            name: "offset of the first row",
            from: "offset[tid.z * params.offset_batch]",
            to: "offset[0]",
        },
        Mutant {
            name: "norm not rounded before it is weighted",
            from: "weight[i] * static_cast<T>(values[i - first] * scale)",
            to: "static_cast<T>(float(weight[i]) * (values[i - first] * scale))",
        },
        Mutant {
            name: "no barrier before pairs are read",
            from: "threadgroup_barrier(mem_flags::mem_threadgroup);\n\n  const int start",
            to: "const int start",
        },
        Mutant {
            name: "the rest is left out",
            from: "uint i = params.dims + lid; i < size",
            to: "uint i = size; i < size",
        },
        Mutant {
            name: "scaled as a whole",
            from: "params.input_scale != 1 && i < uint(params.dims)",
            to: "params.input_scale != 1 && i < uint(params.dims) / 2",
        },
        Mutant {
            name: "heads of other tokens",
            from: "(int64_t(tid.z * grid.y + tid.y) * grid.x + tid.x)",
            to: "(int64_t(tid.z * grid.x + tid.x) * grid.y + tid.y)",
        },
        Mutant { name: "heads without gaps", from: "tid.y * params.x_head", to: "tid.y * size" },
        Mutant {
            name: "norm over what is turned",
            from: "params.eps, size, sums",
            to: "params.eps, uint(params.dims), sums",
        },
    ];
    let Some(mut stock) = Stock::new(Contract::Off) else { return };
    let kinds = [Float::F16, Float::F32].into_iter();
    let cases: Vec<Case> =
        kinds.flat_map(|kind| cases(&mut stock, kind, &[Order::Halves])).collect();
    kernels::all_caught(Contract::Off, FILE, |_| true, &MUTANTS, &cases);
}
