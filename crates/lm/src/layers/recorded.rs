//! Whether a step of decode can be recorded: what it would take of each layer.

use mlx::primitives::{Ask, RecordedAttention, RecordedLatentAttention, RecordedStep, Value};

use super::{Questions, Site};
use crate::cache::{Cache, LayerCache};

/// What is asked of a step whose layers have an empty `cache` and these `sites`.
pub(super) fn recorded_step(cache: &Cache, sites: &[Site<'_>]) -> Questions {
    for (i, layer) in cache.layers.iter().enumerate() {
        let kind = match layer {
            LayerCache::Kv(_) | LayerCache::State(_) => continue,
            LayerCache::Window(window) if window.is_recorded() => continue,
            LayerCache::Window(_) => "a window of 256 tokens or more",
            other => other.kind(),
        };
        return Err(format!("the cache of layer {i} is {kind}, which is not recorded"));
    }
    let mut attentions: Vec<Kind> =
        sites.iter().filter(|site| site.pattern == "attention").flat_map(kinds_of).collect();
    attentions.sort_unstable();
    attentions.dedup();
    let mut questions: Vec<Box<dyn Ask>> = vec![Box::new(RecordedStep)];
    for kind in attentions {
        questions.push(match kind {
            Kind::Keys { head_dim } => Box::new(RecordedAttention { head_dim }),
            Kind::Latents { latent_dim, rope_dim } => {
                Box::new(RecordedLatentAttention { latent_dim, rope_dim })
            }
        });
    }
    Ok(questions)
}

/// What attention of one token is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Keys { head_dim: i32 },
    Latents { latent_dim: i32, rope_dim: i32 },
}

fn kinds_of(site: &Site<'_>) -> Vec<Kind> {
    let kind = |question: &dyn Ask| {
        let parameters = question.parameters();
        let value = |name| parameters.iter().find(|(n, _)| *n == name).map(|(_, value)| value);
        let width = |name| match value(name) {
            Some(Value::Integer(width)) => Some(width as i32),
            _ => None,
        };
        match (width("head_dim")?, width("rope_dim")?) {
            (head_dim, 0) => Some(Kind::Keys { head_dim }),
            // several tokens, of which latents are made keys
            _ if value("causal") == Some(Value::Flag(true)) => None,
            (latent_dim, rope_dim) => Some(Kind::Latents { latent_dim, rope_dim }),
        }
    };
    site.questions.iter().flatten().filter_map(|question| kind(question.as_ref())).collect()
}
