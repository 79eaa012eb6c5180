//! `add_rms_norm` on Metal: the bits of stock's launches.

use metal_bench::{Contract, Launch, Order};

use crate::{
    elementwise::{self, Elementwise},
    kernels::{self, Case, Mutant},
    report,
    rows::{self, NormRope},
    values::{Float, Random, Range},
};

const FILE: &str = "add_rms_norm/kernel.metal";

/// Stock's launches in its place.
struct Stock {
    elementwise: Elementwise,
    norm: NormRope,
}

impl Stock {
    fn new(contract: Contract) -> Option<Stock> {
        let norm = NormRope::new(contract, &rows::source()?);
        Some(Stock { elementwise: elementwise::stock(contract), norm })
    }
}

/// Rows that fill a simdgroup, several, a part of one, a thread's share in part; the longest.
fn cases(stock: &mut Stock, kind: Float, orders: &[Order]) -> Vec<Case> {
    let mut all = Vec::new();
    for (number, n) in [128, 2048, 64, 4096, 100, 2880, 1, 129, 1023].into_iter().enumerate() {
        let mut random = Random::new(number as u64 + 7);
        let range = if number % 4 == 2 { Range::Extreme } else { Range::Ordinary };
        let num_rows = 1 + number % 3;
        let mut one = |len: usize, scale| kind.bytes(&random.floats(len, scale, range));
        let (x, r, weight) = (one(num_rows * n, 3.0), one(num_rows * n, 3.0), one(n, 2.0));
        let eps = [1e-5f32, 1e-6][number % 2];
        for &order in orders {
            let sum = stock.elementwise.binary("Add", kind, &x, &r);
            let normed = stock.norm.norm(kind, &sum, &weight, eps, order);
            let launch = Launch::of(format!("zmlx_add_rms_norm_{}", kind.metal()))
                .input(0, &x)
                .input(1, &r)
                .input(2, &weight)
                .output(3, x.len())
                .output(4, x.len())
                .input(5, eps)
                .input(6, n as u32)
                .order(order)
                .threadgroups([num_rows as u32, 1, 1], [rows::group(n), 1, 1]);
            all.push(Case {
                what: format!("{kind:?} {num_rows} rows of {n} {range:?} {order:?}"),
                launch,
                expected: vec![(kind, sum), (kind, normed)],
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
fn add_rms_norm_has_the_bits_of_stock() {
    if let Some(count) = compare(Contract::Off, &Order::ALL) {
        report("add_rms_norm", count);
    }
}

#[test]
fn add_rms_norm_has_the_bits_of_stock_when_both_contract() {
    if !metal_bench::Compiler::can_contract() {
        return crate::say("skipped: this processor cannot fuse");
    }
    if let Some(count) = compare(Contract::Fast, &[Order::Halves]) {
        report("add_rms_norm, contracted", count);
    }
}

#[test]
fn mutants_of_add_rms_norm_are_caught() {
    const MUTANTS: [Mutant; 9] = [
        Mutant {
            name: "the sum is not rounded",
            from: "values[i] = added;",
            to: "values[i] = float(x[start + i]) + float(r[start + i]);",
        },
        Mutant {
            name: "the normed row is not rounded",
            from: "weight[first + i] * static_cast<T>(values[i] * scale)",
            to: "static_cast<T>(float(weight[first + i]) * (values[i] * scale))",
        },
        Mutant {
            name: "a row too long",
            from: "if (first + i < size) {\n      const T added",
            to: "{\n      const T added",
        },
        Mutant { name: "every row is the first", from: "row * size_t(size) + first", to: "first" },
        Mutant { name: "weights of other numbers", from: "weight[first + i]", to: "weight[i]" },
        Mutant {
            name: "another root",
            from: "metal::precise::rsqrt(sum / size + eps)",
            to: "metal::fast::rsqrt(sum / size + eps)",
        },
        Mutant { name: "sums that begin with anything", from: "sums[simd_lid] = 0;", to: ";" },
        Mutant { name: "one simdgroup only", from: "sums[simd_gid] = sum;", to: "sums[0] = sum;" },
        Mutant {
            name: "no barrier before the root is read",
            from: "threadgroup_barrier(mem_flags::mem_threadgroup);\n  return inverse[0];",
            to: "return inverse[0];",
        },
    ];
    let Some(mut stock) = Stock::new(Contract::Off) else { return };
    let kinds = [Float::F16, Float::F32].into_iter();
    let cases: Vec<Case> =
        kinds.flat_map(|kind| cases(&mut stock, kind, &[Order::Halves])).collect();
    kernels::all_caught(Contract::Off, FILE, |_| true, &MUTANTS, &cases);
}
