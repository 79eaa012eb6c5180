//! MLX's sums over an axis, as `Reduce::eval_gpu` launches them for small axes.

use metal_bench::{Contract, Launch, Machine, mlx};

use crate::{compiler, kernels, values::Float};

/// Launches of them.
pub(crate) struct Reduce(Machine);

pub(crate) fn stock(contract: Contract) -> Reduce {
    let mut text: String = ["utils.h", "atomic.h", "reduction/ops.h", "reduce.h"]
        .map(|header| format!("#include \"mlx/backend/metal/kernels/{header}\"\n"))
        .concat();
    for kind in Float::ALL {
        let t = kind.metal();
        text += &format!(
            "instantiate_kernel(\"columns_{t}\", col_reduce_small, {t}, {t}, Sum<{t}>, int, 1)\n\
             instantiate_kernel(\"rows_{t}\", row_reduce_small, {t}, {t}, Sum<{t}>, int, 1)\n"
        );
    }
    let text = compiler().read_text(&text, &[mlx::include()]).unwrap();
    Reduce(kernels::build(contract, &[text], |_| true).start())
}

impl Reduce {
    /// `sum(-1)` of rows of `n`, which are short.
    pub(crate) fn rows(&mut self, kind: Float, x: &[u8], n: usize) -> Vec<u8> {
        let rows = x.len() / kind.size() / n;
        if n == 1 {
            // a copy
            return x.to_vec();
        }
        assert!(n <= 64);
        let launch = Launch::of(format!("rows_{}", kind.metal()))
            .input(0, x)
            .output(1, rows * kind.size())
            .input(2, n as i64)
            .input(3, 1i64)
            .input(4, rows as i32)
            .input(5, n as i64)
            .input(6, 1i32)
            .input(7, 0i32)
            .input(8, 0i64)
            .input(9, 0i32)
            .threads([rows as u32, 1, 1], [rows.min(1024) as u32, 1, 1]);
        self.0.launch(&launch).unwrap_or_else(|error| panic!("{error}")).only()
    }

    /// `sum(-2)` of `[outer, count, n]` with fewer than 32 rows to add.
    pub(crate) fn columns(
        &mut self,
        kind: Float,
        x: &[u8],
        [outer, count, n]: [usize; 3],
    ) -> Vec<u8> {
        if count == 1 {
            // a copy
            return x.to_vec();
        }
        assert!(count < 32);
        let blocks = n.div_ceil(4);
        let width = blocks.min(32);
        let launch = Launch::of(format!("columns_{}", kind.metal()))
            .input(0, x)
            .output(1, outer * n * kind.size())
            .input(2, count as u64)
            .input(3, n as i64)
            .input(4, outer as i32)
            .input(5, (count * n) as i64)
            .input(6, 1i32)
            .input(7, count as i32)
            .input(8, n as i64)
            .input(9, 1i32)
            .input(10, 1u64)
            .threadgroups(
                [blocks.div_ceil(width) as u32, outer as u32, 1],
                [width as u32, count.min(8) as u32, 1],
            );
        self.0.launch(&launch).unwrap_or_else(|error| panic!("{error}")).only()
    }
}
