//! Kimi-K2.5 (arXiv:2602.02276), the text model: DeepSeek-V3 under `language_model`, its fields under `text_config`.
//!
//! Reference: mlx-lm 0.32.0, `models/kimi_k25.py`. Images are not read; what is there for them is left out.

use serde::Deserialize;
use serde_json::Value;

use super::family::{Conversion, Family, Shape};
use super::{Model, deepseek_v3, latent};
use crate::config::{Fields, ModelConfig};
use crate::error::Result;
use crate::weights::Weights;

/// The fields of `config.json` that shape the model.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct Config(deepseek_v3::Config);

impl Fields for Config {
    const DEFAULTS: &'static [(&'static str, &'static str)] = deepseek_v3::Config::DEFAULTS;
    const UNUSED: &'static [&'static str] = deepseek_v3::Config::UNUSED;
    const ASSUMED: &'static [(&'static str, &'static str)] = deepseek_v3::Config::ASSUMED;
    const FOREIGN: &'static [&'static str] = deepseek_v3::Config::FOREIGN;

    fn check(&self, config: &ModelConfig) -> Result<()> {
        if config.get("text_config").is_none() {
            return Err(config.error("text_config", "is missing"));
        }
        self.0.check(config)
    }
}

impl Family for Config {
    const CONVERSION: Conversion = latent::CONVERSION;

    fn shape(&self) -> Shape {
        self.0.shape()
    }

    fn is_moe(&self, layer: i32) -> bool {
        self.0.is_moe(layer)
    }

    fn check_heads(&self, config: &ModelConfig) -> Result<()> {
        self.0.check_heads(config)
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        self.0.facts()
    }

    fn load(&self, config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
        let towers = "{t:vision_tower|vision_model|multi_modal_projector|mm_projector}.{rest*}";
        weights.rewrite(&self.0.rules("language_model.").drop(towers))?;
        self.0.0.load(config, &weights.root().pp("language_model"), deepseek_v3::EPSILONS)
    }
}
