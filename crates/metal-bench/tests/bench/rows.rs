//! MLX's kernels over rows, one launch each, as stock runs them: norms, rotations, softmax, sorting.

use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
};

use metal_bench::{Contract, Launch, Machine, Order, mlx};

use crate::{compiler, kernels, values::Float};

impl Float {
    /// Its name in MLX.
    fn mlx(self) -> &'static str {
        match self {
            Float::F16 => "float16",
            Float::Bf16 => "bfloat16",
            Float::F32 => "float32",
        }
    }
}

/// The pinned MLX, whose `.metal` files an installed one lacks. Says so where another release is linked, for which nothing
/// is fused.
pub(crate) fn source() -> Option<PathBuf> {
    static SOURCE: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        let source = mlx::source(compiler().folder()).unwrap_or_else(|error| panic!("{error}"));
        if source.is_none() {
            crate::say(&format!("skipped: MLX {} is linked", mlx::version()));
        }
        source
    });
    SOURCE.clone()
}

fn run(machine: &mut Machine, launch: &Launch) -> Vec<u8> {
    machine.launch(launch).unwrap_or_else(|error| panic!("{error}")).only()
}

/// Threads that share a row of `n`, four numbers each.
pub(crate) fn group(n: usize) -> u32 {
    (n.div_ceil(128) * 32) as u32
}

/// `fast::rms_norm` and `fast::rope`.
pub(crate) struct NormRope {
    norm: Machine,
    rope: Machine,
}

/// What `fast::rope` is told.
#[derive(Debug, Clone)]
pub(crate) struct Rope {
    pub(crate) dims: usize,
    pub(crate) traditional: bool,
    pub(crate) base: f32,
    pub(crate) scale: f32,
    pub(crate) freqs: Option<Vec<f32>>,
    /// One for all, or one for each batch row.
    pub(crate) offsets: Vec<i32>,
}

impl NormRope {
    pub(crate) fn new(contract: Contract, source: &Path) -> NormRope {
        let file = |name: &str| {
            let path = source.join("mlx/backend/metal/kernels").join(name);
            compiler().read(&path, &[source.to_owned()]).unwrap_or_else(|error| panic!("{error}"))
        };
        let norm = kernels::build(contract, &[file("rms_norm.metal")], |name| {
            name.starts_with("rms") && !name.contains("looped")
        });
        // a constant when Metal compiles the function: which of two products is contracted hangs on it
        let rope = file("rope.metal");
        let forward = "constant bool forward [[function_constant(1)]];";
        assert!(rope.contains(forward), "MLX's rope.metal no longer has {forward}");
        let rope = rope.replace(forward, "static constant constexpr const bool forward = true;");
        let rope = kernels::build(contract, &[rope], |name| !name.contains("large"));
        NormRope { norm: norm.start(), rope: rope.start() }
    }

    /// Over rows of `weight`.
    pub(crate) fn norm(
        &mut self,
        kind: Float,
        x: &[u8],
        weight: &[u8],
        eps: f32,
        order: Order,
    ) -> Vec<u8> {
        let (rows, n) = ((x.len() / weight.len()) as u32, weight.len() / kind.size());
        let launch = Launch::of(format!("rms{}", kind.mlx()))
            .input(0, x)
            .input(1, weight)
            .output(2, x.len())
            .input(3, eps)
            .input(4, n as u32)
            .input(5, 1u32)
            .order(order)
            .threads([rows * group(n), 1, 1], [group(n), 1, 1]);
        run(&mut self.norm, &launch)
    }

    /// Over `x`, `[batch, heads, tokens, size]` in rows.
    pub(crate) fn rope(
        &mut self,
        kind: Float,
        x: &[u8],
        [batch, heads, tokens, size]: [usize; 4],
        rope: &Rope,
    ) -> Vec<u8> {
        let single = tokens == 1 && rope.offsets.len() == 1;
        let freqs = if rope.freqs.is_some() { "freqs_" } else { "" };
        let one = if single { "single_" } else { "" };
        let mut launch = Launch::of(format!("rope_{one}{freqs}{}", kind.mlx()))
            .constant(2, rope.traditional)
            .constant(3, false)
            .input(0, x)
            .in_out(1, x)
            .input(2, &rope.offsets)
            .input(3, rope.scale);
        launch = match &rope.freqs {
            Some(freqs) => launch.input(10, freqs).input(11, 1i64),
            None => launch.input(10, rope.base.log2()),
        };
        let pairs = (rope.dims / 2) as u32;
        let head = (tokens * size) as i64;
        let launch = if single {
            launch.input(4, head).threads([pairs, (batch * heads) as u32, 1], [pairs.min(32), 1, 1])
        } else {
            let strides = [head, size as i64, 1];
            launch
                .input(4, strides)
                .input(5, strides)
                .input(6, i64::from(rope.offsets.len() > 1))
                .input(7, heads as i32)
                .threads(
                    [pairs, tokens as u32, (batch * heads.div_ceil(4)) as u32],
                    [pairs.min(32), 1, 1],
                )
        };
        run(&mut self.rope, &launch)
    }
}

/// Softmax and argpartition.
pub(crate) struct SoftmaxSort(Machine);

impl SoftmaxSort {
    pub(crate) fn new(contract: Contract) -> SoftmaxSort {
        let mut softmax: String = ["utils.h", "softmax.h"].map(include).concat();
        let mut sort: String = ["utils.h", "sort.h"].map(include).concat();
        for kind in Float::ALL {
            let (name, t) = (kind.mlx(), kind.metal());
            softmax += &format!(
                "instantiate_kernel(\"softmax_{name}\", softmax_single_row, {t})\n\
                 instantiate_kernel(\"softmax_precise_{name}\", softmax_single_row, {t}, float)\n"
            );
            for threads in [32, 64, 128, 256] {
                sort += &format!(
                    "instantiate_kernel(\"sort_{name}_{threads}\", block_sort, {t}, uint32_t, true, {threads}, 4)\n"
                );
            }
        }
        let texts = [softmax, sort].map(|t| {
            compiler().read_text(&t, &[mlx::include()]).unwrap_or_else(|error| panic!("{error}"))
        });
        SoftmaxSort(kernels::build(contract, &texts, |_| true).start())
    }

    /// Over rows of `n`.
    pub(crate) fn softmax(
        &mut self,
        kind: Float,
        x: &[u8],
        n: usize,
        precise: bool,
        order: Order,
    ) -> Vec<u8> {
        let rows = (x.len() / kind.size() / n) as u32;
        let precise = if precise { "precise_" } else { "" };
        let launch = Launch::of(format!("softmax_{precise}{}", kind.mlx()))
            .input(0, x)
            .output(1, x.len())
            .input(2, n as i32)
            .order(order)
            .threads([rows * group(n), 1, 1], [group(n), 1, 1]);
        run(&mut self.0, &launch)
    }

    /// The order of each row of `n`: argpartition is argsort.
    pub(crate) fn order_of(&mut self, kind: Float, x: &[u8], n: usize) -> Vec<u32> {
        let rows = x.len() / kind.size() / n;
        let threads = [32, 64, 128, 256].into_iter().find(|t| n.div_ceil(4) <= *t);
        let threads = threads.expect("a row of one block");
        let launch = Launch::of(format!("sort_{}_{threads}", kind.mlx()))
            .input(0, x)
            .output(1, 4 * rows * n)
            .input(2, n as i32)
            .input(3, 1i32)
            .input(4, 1i32)
            .input(5, n as i32)
            .input(6, n as i32)
            .threadgroups([1, rows as u32, 1], [threads as u32, 1, 1]);
        let bytes = run(&mut self.0, &launch);
        bytes.chunks(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}

fn include(header: &str) -> String {
    format!("#include \"mlx/backend/metal/kernels/{header}\"\n")
}
