//! `moe_router` on Metal: the bits of stock's launches.

use metal_bench::{Contract, Launch, Machine, Order};

use crate::{
    elementwise::{self, Elementwise},
    kernels::{self, Case, Mutant},
    reduce::{self, Reduce},
    report,
    rows::{self, SoftmaxSort},
    values::{Float, Random, Range},
};

const FILE: &str = "moe_router/kernel.metal";

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scoring {
    Softmax,
    Sigmoid,
    SoftmaxOfTopK,
}

/// As `RouterParams`.
#[derive(Debug, Clone)]
struct Router {
    experts: usize,
    top_k: usize,
    scoring: Scoring,
    precise: bool,
    descending: bool,
    in_f32: bool,
    /// Groups, and how many are kept.
    groups: [usize; 2],
    normalize: bool,
    epsilon: f32,
    scale: f32,
    /// The type of the selection bias, and that of the weights.
    bias: Option<Float>,
    weights: Float,
}

/// A softmax, and the `top_k` largest normalized, as most families have it.
fn plain(experts: usize, top_k: usize, weights: Float) -> Router {
    Router {
        experts,
        top_k,
        scoring: Scoring::Softmax,
        precise: true,
        descending: false,
        in_f32: false,
        groups: [1, 1],
        normalize: true,
        epsilon: 0.0,
        scale: 1.0,
        bias: None,
        weights,
    }
}

/// What the kernel is asked for once.
struct Question {
    router: Router,
    kind: Float,
    tokens: usize,
    logits: Vec<u8>,
    bias: Vec<u8>,
}

impl Question {
    /// The type that scores are computed in.
    fn scores(&self) -> Float {
        if self.router.in_f32 { Float::F32 } else { self.kind }
    }

    fn launch(&self, order: Order) -> Launch {
        let r = &self.router;
        // as kernel_params.h
        let mut params = Vec::new();
        let bias_type = r.bias.map_or(0, |kind| match kind {
            Float::F32 => 1,
            Float::F16 => 2,
            Float::Bf16 => 3,
        });
        for value in [
            r.experts,
            r.top_k,
            r.scoring as usize,
            r.precise.into(),
            r.descending.into(),
            bias_type,
            r.groups[0],
            r.groups[1],
            r.normalize.into(),
        ] {
            params.extend((value as i32).to_ne_bytes());
        }
        for value in [r.epsilon, r.scale] {
            params.extend(value.to_ne_bytes());
        }
        let types = [self.kind, self.scores(), r.weights].map(Float::metal).join("_");
        let chosen = self.tokens * r.top_k;
        Launch::of(format!("zmlx_moe_router_{types}"))
            .input(0, &self.logits)
            .input(1, &self.bias)
            .output(2, 4 * chosen)
            .output(3, r.weights.size() * chosen)
            .input(4, params)
            .order(order)
            .threadgroups([self.tokens as u32, 1, 1], [rows::group(r.experts), 1, 1])
    }
}

/// Stock's launches in its place.
struct Stock {
    elementwise: Elementwise,
    rows: SoftmaxSort,
    reduce: Reduce,
}

/// What lies at `places` of each row of `n`.
fn take(kind: Float, x: &[u8], n: usize, places: &[Vec<u32>]) -> Vec<u8> {
    let size = kind.size();
    let row = |(r, places): (usize, &Vec<u32>)| -> Vec<u8> {
        places.iter().flat_map(|p| x[(r * n + *p as usize) * size..][..size].to_vec()).collect()
    };
    places.iter().enumerate().flat_map(row).collect()
}

impl Stock {
    fn new(contract: Contract) -> Stock {
        Stock {
            elementwise: elementwise::stock(contract),
            rows: SoftmaxSort::new(contract),
            reduce: reduce::stock(contract),
        }
    }

    fn constant(&mut self, op: &str, kind: Float, x: &[u8], value: f32) -> Vec<u8> {
        let values = kind.bytes(&vec![value; x.len() / kind.size()]);
        self.elementwise.binary(op, kind, x, &values)
    }

    /// The keys with those of the worst groups set to zero.
    fn keep_best(
        &mut self,
        kind: Float,
        keys: &[u8],
        [groups, kept]: [usize; 2],
        n: usize,
    ) -> Vec<u8> {
        let members = n / groups;
        let order = self.rows.order_of(kind, keys, members);
        let two: Vec<Vec<u32>> = order.chunks(members).map(|o| o[members - 2..].to_vec()).collect();
        let best = self.reduce.rows(kind, &take(kind, keys, members, &two), 2);
        let order = self.rows.order_of(kind, &best, groups);
        let mut keys = keys.to_vec();
        for (row, order) in order.chunks(groups).enumerate() {
            for group in &order[..groups - kept] {
                let first = (row * n + *group as usize * members) * kind.size();
                keys[first..first + members * kind.size()].fill(0);
            }
        }
        keys
    }

    /// Indices and weights.
    fn run(&mut self, question: &Question, order: Order) -> [Vec<u8>; 2] {
        let Question { router: r, kind, tokens, .. } = question;
        let (scores, n, k) = (question.scores(), r.experts, r.top_k);
        let logits = scores.bytes(&kind.read(&question.logits));
        let gates = match r.scoring {
            Scoring::Softmax => self.rows.softmax(scores, &logits, n, r.precise, order),
            Scoring::Sigmoid => self.elementwise.unary("Sigmoid", scores, &logits),
            Scoring::SoftmaxOfTopK => logits,
        };
        let (mut keys, mut key) = (gates.clone(), scores);
        if let Some(bias) = r.bias {
            let values = bias.read(&question.bias);
            let bias = Float::F32.bytes(&values).repeat(*tokens);
            key = Float::F32;
            keys = self.elementwise.binary("Add", key, &key.bytes(&scores.read(&gates)), &bias);
        }
        if r.groups[0] > 1 {
            keys = self.keep_best(key, &keys, r.groups, n);
        }
        if r.descending {
            keys = self.elementwise.unary("Negative", key, &keys);
        }
        let sorted = self.rows.order_of(key, &keys, n);
        let part = if r.descending { 0..k } else { n - k..n };
        let chosen: Vec<Vec<u32>> = sorted.chunks(n).map(|o| o[part.clone()].to_vec()).collect();
        let mut weights = take(scores, &gates, n, &chosen);
        if r.scoring == Scoring::SoftmaxOfTopK {
            weights = self.rows.softmax(scores, &weights, k, r.precise, order);
        }
        if r.normalize {
            let mut total = self.reduce.rows(scores, &weights, k);
            if r.epsilon != 0.0 {
                total = self.constant("Add", scores, &total, r.epsilon);
            }
            let totals: Vec<u8> = total.chunks(scores.size()).flat_map(|t| t.repeat(k)).collect();
            weights = self.elementwise.binary("Divide", scores, &weights, &totals);
        }
        if r.scale != 1.0 {
            weights = self.constant("Multiply", scores, &weights, r.scale);
        }
        let indices = chosen.concat().iter().flat_map(|i| i.to_ne_bytes()).collect();
        [indices, r.weights.bytes(&scores.read(&weights))]
    }
}

/// The routers of families, and what none of them asks for.
fn routers(kind: Float) -> Vec<Router> {
    use Scoring::{Sigmoid, Softmax, SoftmaxOfTopK};
    let p = |experts, top_k| plain(experts, top_k, kind);
    let biased = |router: Router, bias| Router { scoring: Sigmoid, bias: Some(bias), ..router };
    vec![
        // qwen3_moe, olmoe, qwen3_next
        p(128, 8),
        Router { normalize: false, ..p(64, 8) },
        p(512, 10),
        // mixtral, gpt_oss
        Router { scoring: SoftmaxOfTopK, normalize: false, ..p(8, 2) },
        Router { scoring: SoftmaxOfTopK, normalize: false, ..p(32, 4) },
        Router { scoring: SoftmaxOfTopK, precise: false, descending: true, ..p(128, 20) },
        // glm4_moe_lite, deepseek_v3, kimi
        biased(
            Router { in_f32: true, epsilon: 1e-20, scale: 1.8, descending: true, ..p(64, 4) },
            Float::F32,
        ),
        biased(
            Router { in_f32: true, groups: [8, 4], scale: 2.5, descending: true, ..p(256, 8) },
            Float::F32,
        ),
        biased(
            Router { in_f32: true, scale: 2.446, weights: Float::F16, ..p(384, 8) },
            Float::Bf16,
        ),
        // lfm2_moe, minimax
        biased(
            Router { in_f32: true, epsilon: 1e-6, weights: Float::Bf16, ..p(32, 4) },
            Float::F32,
        ),
        biased(Router { epsilon: 1e-20, ..p(256, 8) }, kind),
        Router { scoring: Sigmoid, scale: 0.5, ..p(16, 1) },
        // none; with numbers near one, sums of groups are equal once they are rounded
        Router { scoring: SoftmaxOfTopK, groups: [16, 8], normalize: false, ..p(32, 16) },
        Router { scoring: Sigmoid, groups: [16, 8], epsilon: 0.25, ..p(256, 8) },
        Router { precise: false, ..p(1024, 64) },
        Router { groups: [5, 2], descending: true, ..p(60, 6) },
        Router { scoring: Softmax, groups: [4, 4], ..p(200, 3) },
        Router { in_f32: true, weights: Float::F32, ..p(1, 1) },
        Router { top_k: 33, precise: false, ..p(33, 33) },
        biased(Router { groups: [16, 1], ..p(528, 7) }, Float::F16),
    ]
}

/// What logits are like.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Values {
    Ordinary,
    /// Some are equal: then their order decides.
    Few,
    /// Some sums of two are equal, once they are rounded.
    NearOne,
}

fn cases(stock: &mut Stock, kind: Float, orders: &[Order]) -> Vec<Case> {
    let mut all = Vec::new();
    for (number, router) in routers(kind).into_iter().enumerate() {
        let mut random = Random::new(number as u64 + 3);
        let tokens = 1 + number % 3;
        for values in [Values::Ordinary, Values::Few, Values::NearOne] {
            let mut logits = random.floats(tokens * router.experts, 6.0, Range::Ordinary);
            let mut bias = random.floats(router.experts, 0.5, Range::Ordinary);
            match values {
                Values::Few => {
                    logits.iter_mut().for_each(|x| *x = x.round());
                    bias.iter_mut().for_each(|x| *x = x.round() / 4.0);
                }
                Values::NearOne => {
                    logits.iter_mut().for_each(|x| *x = 1.0 + x.abs().round() / 1024.0);
                }
                Values::Ordinary if number % 3 == 0 && router.experts > 8 => {
                    logits[router.experts / 2] = f32::NEG_INFINITY;
                    logits[3] = -0.0;
                }
                Values::Ordinary => {}
            }
            let question = Question {
                kind,
                tokens,
                logits: kind.bytes(&logits),
                bias: router.bias.unwrap_or(kind).bytes(&bias),
                router: router.clone(),
            };
            for &order in orders {
                let [indices, weights] = stock.run(&question, order);
                all.push(Case {
                    what: format!("{kind:?} {router:?} {values:?} {order:?}"),
                    launch: question.launch(order),
                    // indices are compared as bits
                    expected: vec![(Float::F32, indices), (router.weights, weights)],
                });
            }
        }
    }
    all
}

fn compare(contract: Contract, orders: &[Order]) -> usize {
    let mut stock = Stock::new(contract);
    let mut machine: Machine = kernels::build(contract, &[kernels::read(FILE)], |_| true).start();
    let all = Float::ALL.into_iter().flat_map(|kind| cases(&mut stock, kind, orders));
    kernels::equal_stock(&mut machine, all)
}

#[test]
fn moe_router_has_the_bits_of_stock() {
    report("moe_router", compare(Contract::Off, &[Order::Halves, Order::OneByOne]));
}

#[test]
fn moe_router_has_the_bits_of_stock_when_both_contract() {
    if !metal_bench::Compiler::can_contract() {
        return crate::say("skipped: this processor cannot fuse");
    }
    report("moe_router, contracted", compare(Contract::Fast, &[Order::Halves]));
}

#[test]
fn mutants_of_moe_router_are_caught() {
    const MUTANTS: [Mutant; 20] = [
        Mutant {
            name: "precise exponential",
            from: "values[i] = fast::exp(values[i] - maximum)",
            to: "values[i] = precise::exp(values[i] - maximum)",
        },
        Mutant {
            name: "a maximum of one simdgroup",
            from: "maximum = simd_max(A(maxima[simd_lid]))",
            to: "maximum = simd_max(A(maxima[simd_gid]))",
        },
        Mutant {
            name: "divided, not multiplied",
            from: "C(values[i] * inverse)",
            to: "C(values[i] / (1 / inverse))",
        },
        Mutant {
            name: "accumulated in the type of the scores",
            from: "softmax_row<C, float>(gates,",
            to: "softmax_row<C, C>(gates,",
        },
        Mutant {
            name: "always accumulated in float32",
            from: "softmax_row<C, C>(chosen,",
            to: "softmax_row<C, float>(chosen,",
        },
        Mutant {
            name: "no sum of other simdgroups",
            from: "sums[simd_gid] = sum;",
            to: "sums[0] = sum;",
        },
        Mutant {
            name: "no barrier before the sum",
            from: "sums[simd_gid] = sum;\n  }\n  threadgroup_barrier(mem_flags::mem_threadgroup);",
            to: "sums[simd_gid] = sum;\n  }",
        },
        Mutant {
            name: "equal keys the other way round",
            from: "j < i ? !less(key, other) : less(other, key)",
            to: "j < i ? less(other, key) : !less(key, other)",
        },
        Mutant {
            name: "descending as ascending from the end",
            from: "const float key = descending ? -keys[i] : keys[i];",
            to: "const float key = keys[i];",
        },
        Mutant {
            name: "the largest of a group alone",
            from: "static_cast<K>(second) + static_cast<K>(first)",
            to: "static_cast<K>(first)",
        },
        Mutant {
            name: "sums of groups not rounded",
            from: "static_cast<float>(static_cast<K>(static_cast<K>(second) + static_cast<K>(first)))",
            to: "first + second",
        },
        Mutant {
            name: "one group too few",
            from: "params.num_groups, false) < dropped",
            to: "params.num_groups, false) <= dropped",
        },
        Mutant {
            name: "groups dropped before all are summed",
            from: "    threadgroup_barrier(mem_flags::mem_threadgroup);\n    const int dropped",
            to: "    const int dropped",
        },
        Mutant {
            name: "bias of the wrong expert",
            from: "bias_of(selection_bias, i,",
            to: "bias_of(selection_bias, i - first,",
        },
        Mutant {
            name: "weights with the bias",
            from: "chosen[slot] = gates[i];",
            to: "chosen[slot] = keys[i];",
        },
        Mutant {
            name: "the sum of other tokens",
            from: "logits += token * int64_t(experts);",
            to: "logits += 0;",
        },
        Mutant {
            name: "the sum from its other end",
            from: "static_cast<C>(chosen[i]) + total",
            to: "static_cast<C>(chosen[params.top_k - 1 - i]) + total",
        },
        Mutant {
            name: "no epsilon",
            from: "if (params.epsilon != 0)",
            to: "if (params.epsilon > 1)",
        },
        Mutant {
            name: "scaled before it is divided",
            from: "weight = Divide()(weight, total);",
            to: "weight = Divide()(Multiply()(weight, C(params.scale)), Multiply()(total, C(params.scale)));",
        },
        Mutant {
            name: "no barrier before the weights",
            from: "      chosen[slot] = gates[i];\n    }\n  }\n  threadgroup_barrier(mem_flags::mem_threadgroup);",
            to: "      chosen[slot] = gates[i];\n    }\n  }",
        },
    ];
    let mut stock = Stock::new(Contract::Off);
    let kinds = [Float::F16, Float::F32].into_iter();
    let cases: Vec<Case> =
        kinds.flat_map(|kind| cases(&mut stock, kind, &[Order::Halves])).collect();
    let wanted = |name: &str| !name.contains("router_bfloat");
    kernels::all_caught(Contract::Off, FILE, wanted, &MUTANTS, &cases);
}
