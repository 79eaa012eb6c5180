//! Whether a step of decode can be recorded: what it would take of each layer.

use mlx::primitives::{Ask, RecordedAttention, RecordedStep, Value};

use super::{Questions, Site};
use crate::cache::{Cache, LayerCache};

/// What is asked of a step whose layers have an empty `cache` and these `sites`.
pub(super) fn recorded_step(cache: &Cache, sites: &[Site<'_>]) -> Questions {
    for (i, layer) in cache.layers.iter().enumerate() {
        let kind = match layer {
            LayerCache::Kv(kv) if !kv.is_latent() => continue,
            LayerCache::State(_) => continue,
            LayerCache::Window(window) if window.is_recorded() => continue,
            LayerCache::Window(_) => "a window of 256 tokens or more",
            LayerCache::Kv(_) => "latents",
            other => other.kind(),
        };
        return Err(format!("the cache of layer {i} is {kind}, which is not recorded"));
    }
    let attentions = sites.iter().filter(|site| site.pattern == "attention");
    let mut head_dims: Vec<i32> = attentions.flat_map(head_dims_of).collect();
    head_dims.sort_unstable();
    head_dims.dedup();
    let mut questions: Vec<Box<dyn Ask>> = vec![Box::new(RecordedStep)];
    for head_dim in head_dims {
        questions.push(Box::new(RecordedAttention { head_dim }));
    }
    Ok(questions)
}

fn head_dims_of(site: &Site<'_>) -> Vec<i32> {
    let asked = site.questions.iter().flatten().flat_map(|question| {
        question.parameters().iter().filter(|(name, _)| *name == "head_dim").collect::<Vec<_>>()
    });
    let width =
        |(_, value)| if let Value::Integer(width) = value { Some(width as i32) } else { None };
    asked.filter_map(width).collect()
}
