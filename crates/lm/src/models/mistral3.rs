//! Mistral Small 3.1 and later, and Ministral 3 (arXiv:2601.08584): models of images and text, of which this is the
//! text model, as `text_config` has it. What is for images alone is left in its files.
//!
//! Reference: mlx-lm 0.32.0, `models/mistral3.py`.

use serde_json::{Value, json};

use super::family::{Family, description, parse_or};
use super::{Description, Model, llama, ministral3};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::rewrite::Rules;
use crate::weights::Weights;

/// The text model.
enum Text {
    Llama(llama::Config),
    Ministral3(ministral3::Config),
}

fn text(config: &ModelConfig) -> Result<Text> {
    fn parse<F: Family>(config: &ModelConfig) -> Result<F> {
        parse_or(config, &[("tie_word_embeddings", json!(false))])
    }
    let Some(section) = config.get("text_config") else {
        return Err(config.error("text_config", "is missing"));
    };
    Ok(match section.get("model_type").and_then(Value::as_str) {
        Some("ministral3") => Text::Ministral3(parse(config)?),
        Some("mistral4") => {
            let reason = "is \"mistral4\", which there is no model for here";
            return Err(config.error("text_config.model_type", reason));
        }
        _ => Text::Llama(parse(config)?),
    })
}

/// Reads the configuration and takes the text model's weights.
///
/// # Errors
/// `Config`, and those of taking weights.
pub fn load(config: &ModelConfig, weights: &Weights) -> Result<Box<dyn Model>> {
    weights.rewrite(
        &Rules::new()
            .drop("{module*}vision_tower{rest*}")
            .drop("{module*}multi_modal_projector{rest*}")
            .rename("model.language_model.{rest*}", "language_model.model.{rest}")
            .rename("{part:model|lm_head}.{rest*}", "language_model.{part}.{rest}"),
    )?;
    let root = weights.root().pp("language_model");
    match text(config)? {
        Text::Llama(text) => text.load_below(config, &root),
        Text::Ministral3(text) => text.load_below(config, &root),
    }
}

/// Reads the configuration and describes the text model.
///
/// # Errors
/// `Config`.
pub fn describe(config: &ModelConfig) -> Result<Description> {
    Ok(match text(config)? {
        Text::Llama(text) => description(&text),
        Text::Ministral3(text) => description(&text),
    })
}
