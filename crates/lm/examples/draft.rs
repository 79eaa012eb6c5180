//! Writes a small random checkpoint for a `config.json`, in float32: `draft CONFIG SEED OUT`.
//!
//! `scripts/family_golden/make.py` runs it, so that mlx-lm and the tests compute with the same weights.

use std::error::Error;
use std::path::Path;

use mlx::Dtype;
use zmlx_lm::synth::Draft;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, seed, out] = arguments.as_slice() else {
        return Err("usage: draft CONFIG SEED OUT".into());
    };
    let config = serde_json::from_str(&std::fs::read_to_string(config)?)?;
    Draft::new(config, Dtype::F32, seed.parse()?)?.write(Path::new(out))?;
    Ok(())
}
