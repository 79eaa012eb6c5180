//! Qwen3.5-MoE, the text model: `qwen3_5` with a mixture of experts, whose gate and up projections are stored as one.
//!
//! Reference: mlx-lm 0.32.0, `models/qwen3_5_moe.py`.

use serde::Deserialize;
use serde_json::Value;

use super::family::{Conversion, Family, Shape};
use super::{Model, qwen3_5};
use crate::config::{Fields, ModelConfig};
use crate::error::Result;
use crate::rewrite::Rules;
use crate::weights::Weights;

/// The fields of `config.json` that shape the model.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct Config(qwen3_5::Config);

impl Fields for Config {
    const UNUSED: &'static [&'static str] = qwen3_5::Config::UNUSED;
    const ASSUMED: &'static [(&'static str, &'static str)] = qwen3_5::Config::ASSUMED;

    fn check(&self, config: &ModelConfig) -> Result<()> {
        self.0.check(config)
    }
}

impl Family for Config {
    const CONVERSION: Conversion = qwen3_5::Config::CONVERSION;

    fn shape(&self) -> Shape {
        self.0.shape()
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        self.0.facts()
    }

    fn load(&self, config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
        let experts = |part: &str| format!("{{layer*}}.mlp.{part}");
        let stack = |name: &str| experts(&format!("switch_mlp.{name}.weight"));
        let rules = Rules::new()
            .split(&experts("experts.gate_up_proj"), -2, &[&stack("gate_proj"), &stack("up_proj")])
            .rename(&experts("experts.down_proj"), &stack("down_proj"));
        weights.rewrite(&rules)?;
        self.0.load(config, weights)
    }
}
