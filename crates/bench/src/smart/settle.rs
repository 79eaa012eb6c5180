//! Variants whose patterns are yet to be chosen.

use zmlx_capsule::Software;
use zmlx_lm::{LoadedModel, unpatch};

use super::{Choice, SmartOptions, smart_patch};
use crate::Result;
use crate::case::Work;
use crate::variant::VariantSpec;

/// A variant with the patterns that help this model at this work here. They are measured anew: what is remembered of
/// other prompts says nothing of these. The model is on stock ops afterwards.
///
/// - `work`: its first tokens are the sample
/// - `zmlx`: this program
/// - `on_step`: told what is being measured
///
/// # Errors
/// Those of [`smart_patch`].
pub fn settle(
    loaded: &mut LoadedModel,
    spec: &VariantSpec,
    work: &[Work],
    zmlx: Software,
    on_step: &mut dyn FnMut(&str),
) -> Result<(VariantSpec, Choice)> {
    let mut prompts: Vec<Vec<u32>> = Vec::new();
    for row in work.iter().flat_map(|work| &work.rows) {
        if !prompts.contains(row) {
            prompts.push(row.clone());
        }
    }
    let options = SmartOptions {
        patch: spec.patch_options(),
        cache: spec.cache_options(),
        ..SmartOptions::new(prompts, zmlx)
    };
    let threads = mlx::num_threads();
    if let Some(own) = spec.threads {
        mlx::set_num_threads(own)?;
    }
    let found = smart_patch(loaded, &options, on_step);
    if spec.threads.is_some() {
        mlx::set_num_threads(threads)?;
    }
    unpatch(loaded);
    let choice = found?.choice;
    Ok((spec.chosen(&choice.patterns), choice))
}
