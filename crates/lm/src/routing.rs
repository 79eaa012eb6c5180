//! Which experts the routers of a model choose while it decodes.

use mlx::Dtype;

use crate::decoder::Decoder;
use crate::error::Result;
use crate::generate::GenerateOptions;
use crate::models::LoadedModel;
use crate::patch::sites_of;

/// What one router chose.
#[derive(Debug, Clone, PartialEq)]
pub struct RoutingHistogram {
    /// The decoder layer.
    pub layer: usize,
    /// Tokens routed.
    pub tokens: usize,
    /// How often each expert was chosen.
    pub counts: Vec<u64>,
    /// Sum of the weights that each expert got.
    pub weights: Vec<f64>,
}

impl RoutingHistogram {
    /// Entropy of the counts in bits: 0 where one expert is always chosen, the logarithm of their number where all are
    /// alike.
    pub fn entropy_bits(&self) -> f64 {
        let total: u64 = self.counts.iter().sum();
        let shares = self.counts.iter().filter(|n| **n > 0).map(|n| *n as f64 / total as f64);
        shares.map(|share| -share * share.log2()).sum::<f64>().max(0.0)
    }
}

/// Generates after `prompt` and counts what each router chose from the prompt's last token on. As patched as the model
/// is; the layers come in order, those without a router are left out.
///
/// # Errors
/// Those of [`Decoder`].
pub fn routing_histogram(
    loaded: &mut LoadedModel,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Result<Vec<RoutingHistogram>> {
    let mut logs = Vec::new();
    for site in sites_of(loaded.model.as_mut()) {
        if let (Some(trace), Some(layer)) = (site.trace, site.module.layer_index()) {
            logs.push((layer, trace.num_experts(), trace.begin()));
        }
    }
    let generated = generate(loaded, prompt, options, &mut || {
        logs.iter().for_each(|(_, _, log)| log.borrow_mut().clear());
    });
    for site in sites_of(loaded.model.as_mut()) {
        if let Some(trace) = site.trace {
            trace.end();
        }
    }
    generated?;
    let mut histograms = Vec::new();
    for (layer, num_experts, log) in logs {
        let mut histogram = RoutingHistogram {
            layer,
            tokens: 0,
            counts: vec![0; num_experts as usize],
            weights: vec![0.0; num_experts as usize],
        };
        for routed in log.borrow().iter() {
            let indices = routed.indices.astype(Dtype::U32)?.to_vec::<u32>()?;
            let weights = routed.weights.astype(Dtype::F32)?.to_vec::<f32>()?;
            let top_k = routed.indices.dim(-1).max(1) as usize;
            histogram.tokens += indices.len() / top_k;
            for (expert, weight) in indices.into_iter().zip(weights) {
                if let Some(count) = histogram.counts.get_mut(expert as usize) {
                    *count += 1;
                    histogram.weights[expert as usize] += f64::from(weight);
                }
            }
        }
        histograms.push(histogram);
    }
    Ok(histograms)
}

/// - `on_ready`: told when all of the prompt but its last token has been read
fn generate(
    loaded: &LoadedModel,
    prompt: &[u32],
    options: &GenerateOptions,
    on_ready: &mut dyn FnMut(),
) -> Result<()> {
    let mut decoder = Decoder::new(loaded.model.as_ref(), prompt, options)?;
    while !decoder.prefill_piece()? {}
    on_ready();
    while decoder.next().transpose()?.is_some() {}
    Ok(())
}
