//! MLX's elementwise kernels, one launch each, as stock runs them.

use metal_bench::{Contract, Launch, Machine, mlx};

use crate::{compiler, kernels, values::Float};

const UNARY: [&str; 3] = ["Negative", "Sigmoid", "Tanh"];
const BINARY: [&str; 6] = ["Add", "Divide", "Maximum", "Minimum", "Multiply", "Power"];

/// Launches of them.
pub(crate) struct Elementwise(Machine);

pub(crate) fn stock(contract: Contract) -> Elementwise {
    let mut text: String = ["utils.h", "unary_ops.h", "binary_ops.h", "unary.h", "binary.h"]
        .map(|header| format!("#include \"mlx/backend/metal/kernels/{header}\"\n"))
        .concat();
    for kind in Float::ALL {
        let t = kind.metal();
        for op in UNARY {
            text += &format!("instantiate_kernel(\"v_{op}{t}\", unary_v, {t}, {t}, {op})\n");
        }
        for op in BINARY {
            text += &format!("instantiate_kernel(\"vv_{op}{t}\", binary_vv, {t}, {t}, {op})\n");
        }
    }
    let text = compiler().read_text(&text, &[mlx::include()]).unwrap();
    Elementwise(kernels::build(contract, &[text], |_| true).start())
}

impl Elementwise {
    pub(crate) fn unary(&mut self, op: &str, kind: Float, x: &[u8]) -> Vec<u8> {
        let launch = Launch::of(format!("v_{op}{}", kind.metal())).input(0, x).output(1, x.len());
        self.run(launch.input(2, (x.len() / kind.size()) as u32), kind, x.len())
    }

    pub(crate) fn binary(&mut self, op: &str, kind: Float, a: &[u8], b: &[u8]) -> Vec<u8> {
        assert_eq!(a.len(), b.len());
        let launch = Launch::of(format!("vv_{op}{}", kind.metal()))
            .input(0, a)
            .input(1, b)
            .output(2, a.len())
            .input(3, (a.len() / kind.size()) as u32);
        self.run(launch, kind, a.len())
    }

    /// A thread for each `WorkPerThread` of elements.
    fn run(&mut self, launch: Launch, kind: Float, num_bytes: usize) -> Vec<u8> {
        let threads = (num_bytes / kind.size()).div_ceil(8 / kind.size()) as u32;
        let launch = launch.threads([threads, 1, 1], [threads.min(256), 1, 1]);
        self.0.launch(&launch).unwrap_or_else(|error| panic!("{error}")).only()
    }
}
