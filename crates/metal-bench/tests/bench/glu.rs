//! What joins gate and up projections, in stock's launches.

use crate::{elementwise::Elementwise, values::Float};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Activation {
    Silu,
    GeluTanh,
    Clipped { alpha: f32, limit: f32 },
}

impl Activation {
    /// One or the other, as numbers go up.
    pub(crate) fn by_turns(number: usize) -> Activation {
        match number % 4 {
            0 | 3 => Activation::Silu,
            1 => Activation::Clipped { alpha: 1.702, limit: 7.0 },
            _ => Activation::GeluTanh,
        }
    }

    /// The last of the params: its code, alpha and limit.
    pub(crate) fn params(self) -> Vec<u8> {
        let (code, alpha, limit) = match self {
            Activation::Silu => (0i32, 0f32, 0f32),
            Activation::GeluTanh => (1, 0.0, 0.0),
            Activation::Clipped { alpha, limit } => (2, alpha, limit),
        };
        [code.to_ne_bytes(), alpha.to_ne_bytes(), limit.to_ne_bytes()].concat()
    }

    pub(crate) fn gated(
        &self,
        ops: &mut Elementwise,
        kind: Float,
        gate: &[u8],
        up: &[u8],
    ) -> Vec<u8> {
        let fill = |x: f32| kind.bytes(&vec![x; gate.len() / kind.size()]);
        match *self {
            Activation::Silu => {
                let sigmoid = ops.unary("Sigmoid", kind, gate);
                let silu = ops.binary("Multiply", kind, gate, &sigmoid);
                ops.binary("Multiply", kind, &silu, up)
            }
            Activation::GeluTanh => {
                let cube = ops.binary("Power", kind, gate, &fill(3.0));
                let cubic = ops.binary("Multiply", kind, &fill(0.044715), &cube);
                let inner = ops.binary("Add", kind, gate, &cubic);
                let inner = ops.binary("Multiply", kind, &fill(0.797_884_6), &inner);
                let tanh = ops.unary("Tanh", kind, &inner);
                let sum = ops.binary("Add", kind, &fill(1.0), &tanh);
                let half = ops.binary("Multiply", kind, &fill(0.5), gate);
                let gelu = ops.binary("Multiply", kind, &half, &sum);
                ops.binary("Multiply", kind, &gelu, up)
            }
            Activation::Clipped { alpha, limit } => {
                let cut = ops.binary("Minimum", kind, gate, &fill(limit));
                let linear = ops.binary("Maximum", kind, up, &fill(-limit));
                let linear = ops.binary("Minimum", kind, &linear, &fill(limit));
                let scaled = ops.binary("Multiply", kind, &fill(alpha), &cut);
                let sigmoid = ops.unary("Sigmoid", kind, &scaled);
                let glu = ops.binary("Multiply", kind, &cut, &sigmoid);
                let linear = ops.binary("Add", kind, &linear, &fill(1.0));
                ops.binary("Multiply", kind, &linear, &glu)
            }
        }
    }
}
