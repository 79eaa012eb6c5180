//! The README's table of families says what the code says. `cargo xtask families` writes it.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use mlx::quantization::{Mode, Quantization};
use mlx::{Array, Device, Dtype, default_device};

use super::families::Golden;
use super::fixture::ELSEWHERE;
use crate::models::{ALIASES, LoadedModel, MODELS, Preset};
use crate::patch::{PatchOptions, Patterns, plan};
use crate::patterns;
use crate::step::Step;

const BEGIN: &str = "<!-- families: written by `cargo xtask families` -->\n";
const END: &str = "<!-- /families -->\n";
/// Set by `cargo xtask families`.
const WRITE: &str = "ZMLX_WRITE_FAMILIES";

/// Whether a model of this quantisation says something.
fn runs(loaded: &LoadedModel) -> bool {
    let tokens = Array::from_slice(&[1_u32, 2], &[1, 2]).unwrap();
    let mut cache = loaded.model.make_cache();
    let out = loaded.model.forward(&Step::new(&tokens), &mut [&mut cache]);
    out.is_ok_and(|logits| logits.astype(Dtype::F32).unwrap().eval().is_ok())
}

fn quantizations(golden: &Golden) -> String {
    let affine = |bits| Quantization { group_size: 32, bits, mode: Mode::Affine };
    let with = |quantization| runs(&golden.load(Dtype::Bf16, Some(quantization)));
    let bits: Vec<_> = [2, 3, 4, 5, 6, 8].into_iter().filter(|bits| with(affine(*bits))).collect();
    let bits = match bits.as_slice() {
        [2, 3, 4, 5, 6, 8] => "2-6, 8".to_owned(),
        some => some.iter().map(i32::to_string).collect::<Vec<_>>().join(", "),
    };
    let mut names = vec![format!("affine {bits}")];
    let modes = [Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4];
    let modes = modes.into_iter().filter(|mode| with(Quantization::default_of(*mode)));
    names.extend(modes.map(|mode| mode.name().to_owned()));
    names.extend(
        [Dtype::Bf16, Dtype::F16, Dtype::F32]
            .into_iter()
            .filter(|dtype| runs(&golden.load(*dtype, None)))
            .map(|dtype| dtype.to_string()),
    );
    names.join(", ")
}

/// Patterns that take all or some of a family's sites, and why others are left.
fn fusion(golden: &Golden) -> (String, String) {
    let mut loaded = golden
        .load(Dtype::Bf16, Some(Quantization { group_size: 32, bits: 4, mode: Mode::Affine }));
    let names = patterns::names().iter().map(|name| (*name).to_owned()).collect();
    let options = PatchOptions { patterns: Patterns::Names(names), ..PatchOptions::default() };
    let report = plan(&mut loaded, &options).unwrap();
    let (mut fused, mut left) = (Vec::new(), Vec::new());
    for pattern in patterns::names().into_iter().filter(|name| !ELSEWHERE.contains(name)) {
        let rows: Vec<_> = report.modules.iter().filter(|row| row.pattern == pattern).collect();
        let mut reasons: Vec<_> = rows.iter().filter_map(|row| row.fallback.as_deref()).collect();
        let some = if reasons.len() < rows.len() { "some " } else { "" };
        if reasons.len() < rows.len() {
            fused.push(format!("`{pattern}`"));
        }
        reasons.sort_unstable();
        reasons.dedup();
        left.extend(reasons.iter().map(|reason| format!("{some}`{pattern}`: {reason}")));
    }
    (fused.join(", "), left.join("; "))
}

fn table() -> String {
    let mut out = String::from(
        "| `model_type` | fused on a CPU | on stock ops, and why | weights |\n|---|---|---|---|\n",
    );
    for row in MODELS {
        let golden = Golden::of(row.model_type);
        let others = ALIASES.iter().filter(|(_, name)| *name == row.model_type);
        let names: Vec<_> =
            [row.model_type].into_iter().chain(others.map(|(alias, _)| *alias)).collect();
        let (fused, mut left) = fusion(&golden);
        let preset = match row.preset {
            Preset::Device => String::new(),
            Preset::Without(patterns) => {
                let each = patterns.iter().map(|(name, why)| format!("`{name}`, {why}"));
                format!("not by default: {}", each.collect::<Vec<_>>().join("; "))
            }
            Preset::None(why) => format!("nothing by default: {why}"),
        };
        if !(left.is_empty() || preset.is_empty()) {
            left.push_str("; ");
        }
        let names = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let weights = quantizations(&golden);
        writeln!(out, "| {names} | {fused} | {left}{preset} | {weights} |").unwrap();
    }
    out
}

#[test]
fn table_in_the_readme_is_current() {
    if mlx::build_info().primitives.is_empty() || default_device() != Device::Cpu {
        return; // it is about the fused CPU primitives
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the README has a place for the table");
    let (held, after) = rest.split_once(END).expect("the place for the table ends");
    let table = table();
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
    } else {
        assert!(held == table, "`cargo xtask families` brings it up to date:\n{table}");
    }
}
