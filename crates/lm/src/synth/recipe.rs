//! Which values a weight gets, by what it does and what it is called.
//!
//! Embeddings have size 1. The `2 * num_layers` branches together add variance 3, so that the last position depends
//! on its context and not on its own token alone. Logits have size 3.

use crate::weights::{Role, WeightRecord};

/// Size of attention logits is the product of the two.
const QUERY_NORM: f32 = 1.7;
const KEY_NORM: f32 = 1.2;
/// Large enough that the choice of experts is clear, small enough that all are chosen at times.
const ROUTER: f32 = 2.0;
const GATE: f32 = 1.5;
/// Makes up for what SiLU (0.87) and the weighted mean over experts (0.55) take away.
const DOWN: f32 = 2.1;
const LOGITS: f32 = 3.0;

/// Parameters that something is multiplied by.
const FACTORS: [&str; 2] = ["layer_scalar", "per_expert_scale"];

/// Mean and standard deviation of a weight's values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spread {
    pub(super) mean: f32,
    pub(super) std: f32,
}

/// The values of one weight in a model of `num_layers`; none is left at zero.
pub(super) fn spread(weight: &WeightRecord, num_layers: usize) -> Spread {
    let module = weight.module.rsplit('.').next().unwrap_or_default();
    // inputs of size 1 give outputs of size `gain`
    let linear = |gain: f32| {
        let fan_in = weight.shape.last().copied().unwrap_or(1) as f32;
        Spread { mean: 0.0, std: gain / fan_in.sqrt() }
    };
    let branch = (3.0 / (2.0 * num_layers as f32)).sqrt();
    match (weight.role, module) {
        // what is multiplied by; that of a router's norm is divided by the root of the width
        (Role::Other, "router") if weight.name == "scale" => {
            let mean = (weight.shape.first().copied().unwrap_or(1) as f32).sqrt();
            Spread { mean, std: 0.15 * mean }
        }
        (Role::Other, _) if FACTORS.contains(&weight.name.as_str()) => {
            Spread { mean: 1.0, std: 0.15 }
        }
        (Role::Norm, _) => {
            let mean = match module {
                "q_norm" => QUERY_NORM,
                "k_norm" => KEY_NORM,
                _ => 1.0,
            };
            Spread { mean, std: 0.15 * mean }
        }
        (Role::Embedding, _) => Spread { mean: 0.0, std: 1.0 },
        (Role::Router, _) => linear(ROUTER),
        (Role::Matrix | Role::Experts, "gate_proj") => linear(GATE),
        (Role::Matrix | Role::Experts, "down_proj") => linear(DOWN * branch),
        (Role::Matrix, "o_proj") => linear(branch),
        (Role::Matrix, "lm_head") => linear(LOGITS),
        (Role::Matrix | Role::Experts, _) => linear(1.0),
        (Role::Other, _) => Spread { mean: 0.0, std: 0.2 },
    }
}
