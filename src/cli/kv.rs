//! What a model remembers of a sequence: how it is packed, and the file that it comes from.

use std::path::PathBuf;

use anyhow::ensure;
use zmlx::lm::cache::{LayerCache, SavedCache};
use zmlx::lm::{CacheOptions, KvQuantization, Model, PromptCache};

/// How keys and values are kept.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Cache")]
pub(super) struct KvOptions {
    /// Keep keys and values in this many bits: 2, 3, 4, 6 or 8 [default: as they are]
    #[arg(long, value_name = "B")]
    kv_bits: Option<i32>,
    /// Numbers that share a scale: 32, 64 or 128 [default: 64]
    #[arg(long, value_name = "G", requires = "kv_bits")]
    kv_group_size: Option<i32>,
    /// Tokens from which on they are packed [default: 5000]
    #[arg(long, value_name = "N", requires = "kv_bits")]
    quantized_kv_start: Option<i32>,
}

impl KvOptions {
    /// As mlx-lm is told it.
    pub(super) fn quantization(&self) -> Option<KvQuantization> {
        let default = KvQuantization::new(self.kv_bits?);
        Some(KvQuantization {
            group_size: self.kv_group_size.unwrap_or(default.group_size),
            start: self.quantized_kv_start.unwrap_or(default.start),
            ..default
        })
    }

    pub(super) fn options(&self) -> CacheOptions {
        CacheOptions { quantized: self.quantization(), ..CacheOptions::default() }
    }
}

/// A file with the cache of a prompt.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Cache")]
pub(super) struct PromptCacheOptions {
    /// Continue what this file of zmlx cache-prompt or mlx_lm.cache_prompt holds
    #[arg(long, value_name = "FILE")]
    pub(super) prompt_cache: Option<PathBuf>,
}

/// A prompt's cache from a file, checked to be of this model.
///
/// - `name`: what the user calls the model
pub(super) fn load(
    path: &std::path::Path,
    model: &dyn Model,
    name: &str,
    kv: &KvOptions,
) -> anyhow::Result<PromptCache> {
    let saved = SavedCache::load(path)?;
    let shown = path.display();
    if let Some(made_for) = &saved.model {
        ensure!(
            made_for == name || is_same_folder(made_for, name),
            "--prompt-cache: {shown} was made with the model {made_for}, this is {name}; write one for it with zmlx cache-prompt"
        );
    }
    let held = saved.cache.layers.iter().find_map(|layer| match layer {
        LayerCache::Quantized(kv) => Some(kv.quantization()),
        _ => None,
    });
    if let (Some(held), Some(wanted)) = (held, kv.quantization()) {
        ensure!(
            (held.bits, held.group_size) == (wanted.bits, wanted.group_size),
            "--kv-bits: {shown} holds {} bits in groups of {}, not {} in groups of {}",
            held.bits,
            held.group_size,
            wanted.bits,
            wanted.group_size
        );
    }
    Ok(PromptCache::behind(saved.into_cache(model)?))
}

/// Whether two spellings lead to one folder.
fn is_same_folder(a: &str, b: &str) -> bool {
    let folder = |path: &str| std::fs::canonicalize(path).ok().filter(|path| path.is_dir());
    folder(a).is_some_and(|a| folder(b) == Some(a))
}
