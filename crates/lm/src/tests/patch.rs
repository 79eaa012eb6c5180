//! Patched models say what unpatched ones say; reports say what happened.

use std::ops::ControlFlow;

use mlx::primitives::Precision;
use mlx::quantization::{Mode, Quantization};
use mlx::{Device, Dtype};
use serde_json::json;

use super::fixture::{ELSEWHERE, Fixture, PROMPT, VOCAB, q4};
use crate::error::Error;
use crate::generate::{GenerateOptions, generate};
use crate::inspect::inspect;
use crate::layers::{Fusion, Path};
use crate::models::{LoadedModel, MODELS, Preset};
use crate::patch::{Fused, PatchOptions, Patterns, patch, plan, sites_of, unpatch};
use crate::patterns::{self, PATTERNS};
use crate::validate::{ValidateOptions, validate};

fn names(names: &[&str]) -> PatchOptions {
    let patterns = Patterns::Names(names.iter().map(|n| (*n).to_owned()).collect());
    PatchOptions { patterns, ..PatchOptions::default() }
}

/// All that a CPU has.
fn all() -> PatchOptions {
    let all = patterns::names();
    names(&all.into_iter().filter(|name| !ELSEWHERE.contains(name)).collect::<Vec<_>>())
}

fn require(options: PatchOptions) -> PatchOptions {
    PatchOptions { fused: Fused::Require, ..options }
}

fn tokens(loaded: &LoadedModel, prompt: &[u32]) -> Vec<u32> {
    let options = GenerateOptions { max_tokens: 24, ..GenerateOptions::default() };
    let mut go_on = |_| ControlFlow::Continue(());
    generate(loaded.model.as_ref(), prompt, &options, &mut go_on).unwrap().token_ids
}

/// Long enough that stock sorts its rows by expert in prefill.
fn long_prompt() -> Vec<u32> {
    (0..70).map(|i| (i * 31 + 7) % VOCAB).collect()
}

/// Whether the primitives are in this build; without, every module falls back and says so.
fn fused_is_built() -> bool {
    !mlx::build_info().primitives.is_empty()
}

fn count_fused(loaded: &mut LoadedModel) -> usize {
    sites_of(loaded.model.as_mut()).iter().filter(|site| *site.path != Path::Stock).count()
}

#[test]
fn patched_tokens_equal_unpatched_ones() {
    let affine = |group_size, bits| Quantization { group_size, bits, mode: Mode::Affine };
    for (dtype, quantization, changes) in [
        (Dtype::Bf16, q4(), json!({})),
        (Dtype::F16, affine(64, 3), json!({"norm_topk_prob": false})),
        (Dtype::F32, affine(32, 6), json!({"tie_word_embeddings": true})),
        (Dtype::Bf16, affine(64, 8), json!({"num_experts_per_tok": 1})),
        (Dtype::Bf16, Quantization::default_of(Mode::Mxfp4), json!({"mlp_only_layers": [0]})),
        (Dtype::Bf16, Quantization::default_of(Mode::Nvfp4), json!({"num_experts_per_tok": 6})),
    ] {
        let mut loaded = Fixture::with(dtype, changes).quantized(quantization).load();
        let long = long_prompt();
        let stock = (tokens(&loaded, PROMPT), tokens(&loaded, &long));
        for pattern in patterns::names() {
            patch(&mut loaded, &names(&[pattern])).unwrap();
            let patched = (tokens(&loaded, PROMPT), tokens(&loaded, &long));
            assert_eq!(patched, stock, "{pattern} {dtype} {quantization}");
        }
        patch(&mut loaded, &all()).unwrap();
        assert_eq!((tokens(&loaded, PROMPT), tokens(&loaded, &long)), stock, "all {quantization}");
        unpatch(&mut loaded);
        assert_eq!(count_fused(&mut loaded), 0);
        assert_eq!(tokens(&loaded, PROMPT), stock.0);
    }
}

#[test]
fn decode_only_paths_leave_prefill_to_stock() {
    if !fused_is_built() {
        return;
    }
    let mut loaded = Fixture::dense(Dtype::Bf16).quantized(q4()).load();
    let stock = tokens(&loaded, &long_prompt());
    let path = Path::Fused(Fusion { precision: Precision::Exact, decode_only: true });
    for site in sites_of(loaded.model.as_mut()) {
        if ["moe_mlp", "moe_combine"].contains(&site.pattern) {
            *site.path = path;
        }
    }
    assert_eq!(tokens(&loaded, &long_prompt()), stock);
}

#[test]
fn report_lists_every_module_with_its_reason() {
    let mut loaded = Fixture::dense(Dtype::Bf16).quantized(q4()).load();
    let report = patch(&mut loaded, &PatchOptions::default()).unwrap();
    let mut preset = patterns::preset(report.device).to_vec();
    preset.retain(|name| !["swiglu_mlp", "short_conv", "gated_delta"].contains(name));
    assert_eq!(report.patterns, preset);
    assert_eq!(report.num_moe_modules, 2);
    if report.device == Device::Cpu && fused_is_built() {
        assert_eq!(report.patched_modules(), 2);
        assert_eq!(report.patched_linears(), 9);
        assert_eq!(report.fallbacks().count(), 0);
    }
    if !fused_is_built() {
        assert_eq!(report.patched_modules(), 0);
        assert_eq!(report.fallbacks().count(), report.modules.len());
        assert!(report.fallbacks().all(|(_, reason)| reason.contains("custom-primitive")));
    }
    // the router's gate, both experts' parts, in order of execution
    let of_first: Vec<_> =
        report.modules.iter().filter(|row| row.module == "model.layers.0.mlp").collect();
    assert!(of_first.iter().any(|row| row.pattern == "moe_mlp"));
}

#[test]
fn dense_experts_fall_back_and_say_so() {
    let mut loaded = Fixture::dense(Dtype::F32).load();
    let stock = tokens(&loaded, PROMPT);
    let report = patch(&mut loaded, &names(&["moe_mlp", "moe_combine"])).unwrap();
    assert_eq!(report.patched_modules(), 0);
    let reasons: Vec<_> = report.fallbacks().map(|(row, reason)| (row.pattern, reason)).collect();
    assert_eq!(
        reasons[..2],
        [("moe_mlp", "gate_proj is dense"), ("moe_combine", "down_proj is dense")]
    );
    assert_eq!(tokens(&loaded, PROMPT), stock);
    // a dense layer is no business of a pattern for packed ones
    assert!(patch(&mut loaded, &names(&["quantized_linear"])).unwrap().modules.is_empty());
}

#[test]
fn experts_packed_differently_fall_back_and_say_so() {
    let mut fixture = Fixture::dense(Dtype::Bf16);
    let module = "model.layers.0.mlp.switch_mlp.up_proj";
    let eight = Quantization { group_size: 64, bits: 8, mode: Mode::Affine };
    fixture.quantize(module, eight);
    let packed: Vec<_> =
        fixture.weights.keys().filter(|n| n.starts_with(module)).cloned().collect();
    let own: Vec<_> =
        packed.into_iter().map(|n| (fixture.weights.remove(&n).unwrap(), n)).collect();
    let mut fixture = fixture.quantized(q4());
    for (array, name) in own {
        fixture.weights.insert(name, array);
    }
    fixture.config["quantization"][module] = json!({"group_size": 64, "bits": 8});
    let mut loaded = fixture.load();
    let report = patch(&mut loaded, &names(&["moe_mlp"])).unwrap();
    assert_eq!(report.patched_modules(), usize::from(fused_is_built()));
    let (row, reason) = report.fallbacks().next().unwrap();
    assert_eq!(row.module, "model.layers.0.mlp");
    assert!(reason.contains("quantised differently"), "{reason}");
}

#[test]
fn require_fails_with_module_and_reason_and_patches_nothing() {
    let mut loaded = Fixture::dense(Dtype::F32).load();
    let error = patch(&mut loaded, &require(names(&["moe_mlp"]))).unwrap_err();
    assert!(matches!(&error, Error::NotFused { pattern: "moe_mlp", .. }));
    assert_eq!(
        error.to_string(),
        "`model.layers.0.mlp` cannot run pattern `moe_mlp` fused: gate_proj is dense"
    );
    assert_eq!(count_fused(&mut loaded), 0);

    let mut loaded = Fixture::dense(Dtype::Bf16).quantized(q4()).load();
    assert_eq!(patch(&mut loaded, &require(all())).is_ok(), fused_is_built());
}

#[test]
fn off_patches_nothing_and_restores() {
    let mut loaded = Fixture::dense(Dtype::Bf16).quantized(q4()).load();
    patch(&mut loaded, &all()).unwrap();
    assert_eq!(count_fused(&mut loaded) > 0, fused_is_built());
    let off = PatchOptions { patterns: Patterns::Off, ..PatchOptions::default() };
    let report = patch(&mut loaded, &require(off)).unwrap();
    assert!(report.modules.is_empty() && report.patterns.is_empty());
    assert_eq!(count_fused(&mut loaded), 0);
}

#[test]
fn plan_changes_nothing() {
    let mut loaded = Fixture::dense(Dtype::Bf16).quantized(q4()).load();
    let planned = plan(&mut loaded, &all()).unwrap();
    assert_eq!(count_fused(&mut loaded), 0);
    assert_eq!(patch(&mut loaded, &all()).unwrap().modules, planned.modules);
}

#[test]
fn pattern_unknown_lists_known_ones() {
    let mut loaded = Fixture::dense(Dtype::F32).load();
    let error = patch(&mut loaded, &names(&["moe_mlp", "moe_magic"])).unwrap_err();
    assert!(matches!(error, Error::UnknownPattern { .. }));
    assert!(error.to_string().starts_with("pattern `moe_magic` is not known; known: moe_mlp, "));
}

#[test]
fn tables_agree() {
    let mut sorted = patterns::names();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), PATTERNS.len());
    for device in [Device::Cpu, Device::Gpu] {
        for name in patterns::preset(device) {
            assert!(patterns::names().contains(name), "{name}");
        }
    }
    for model in MODELS {
        if let Preset::Without(exceptions) = model.preset {
            for (name, why) in exceptions {
                assert!(patterns::names().contains(name) && !why.is_empty(), "{name}");
            }
        }
    }
    let mut loaded = Fixture::dense(Dtype::Bf16).quantized(q4()).load();
    for site in sites_of(loaded.model.as_mut()) {
        assert!(patterns::names().contains(&site.pattern), "{}", site.pattern);
    }
}

#[test]
fn excluded_modules_and_other_layers_stay_on_stock() {
    let mut loaded = Fixture::dense(Dtype::Bf16).quantized(q4()).load();
    let exclude = ["*.q_proj", "model.layers.1.*"].map(|glob| glob.parse().unwrap());
    let options = PatchOptions { exclude: exclude.to_vec(), ..all() };
    let report = patch(&mut loaded, &options).unwrap();
    for row in &report.modules {
        let glob = exclude.iter().find(|glob| glob.matches(&row.module));
        assert_eq!(row.left_out, glob.is_some(), "{}", row.module);
        if let Some(glob) = glob {
            assert_eq!(row.fallback.as_deref(), Some(format!("excluded by `{glob}`").as_str()));
        }
    }
    assert!(report.modules.iter().any(|row| row.left_out));
    // what the user leaves out is no failure
    assert_eq!(patch(&mut loaded, &require(options)).is_ok(), fused_is_built());

    let options = PatchOptions { layers: Some(vec![1..=1]), ..all() };
    let report = patch(&mut loaded, &options).unwrap();
    for row in &report.modules {
        assert_eq!(row.left_out, row.layer != Some(1), "{}", row.module);
    }
    let fused: Vec<_> = sites_of(loaded.model.as_mut())
        .iter()
        .filter(|site| *site.path != Path::Stock)
        .map(|site| site.module.layer_index())
        .collect();
    assert_eq!(!fused.is_empty(), fused_is_built());
    assert!(fused.iter().all(|layer| *layer == Some(1)));
}

#[test]
fn validate_finds_no_difference_where_there_is_none() {
    let mut loaded = Fixture::dense(Dtype::Bf16).quantized(q4()).load();
    let prompts = [PROMPT.to_vec(), long_prompt()];
    let options = ValidateOptions {
        generate: GenerateOptions { max_tokens: 12, ..GenerateOptions::default() },
        runs: 2,
        patch: all(),
    };
    let mut seen = 0;
    let validation = validate(&mut loaded, &prompts, None, &options, &mut |_| seen += 1).unwrap();
    assert!(validation.identical());
    assert_eq!((seen, validation.runs.len(), validation.tokens_compared), (4, 4, 48));
    assert!(validation.speedup().is_some_and(|ratio| ratio > 0.0));
    assert_eq!(count_fused(&mut loaded), 0);
}

#[test]
fn validate_shows_the_first_difference() {
    let mut loaded = Fixture::dense(Dtype::Bf16).quantized(q4()).load();
    let mut reference = vec![tokens(&loaded, PROMPT), tokens(&loaded, &long_prompt())];
    let said = reference[1][5];
    reference[1][5] = (said + 1) % VOCAB;
    let prompts = [PROMPT.to_vec(), long_prompt()];
    let options = ValidateOptions {
        generate: GenerateOptions { max_tokens: 24, ..GenerateOptions::default() },
        runs: 1,
        patch: all(),
    };
    let validation =
        validate(&mut loaded, &prompts, Some(&reference), &options, &mut |_| {}).unwrap();
    assert!(!validation.identical());
    let divergence = validation.first_divergence.unwrap();
    assert_eq!((divergence.prompt, divergence.run, divergence.index), (1, 1, 5));
    assert_eq!((divergence.expected, divergence.got), (Some((said + 1) % VOCAB), Some(said)));
    // what the model did not say had the smaller logit
    assert!(divergence.logit_margin.is_some_and(|margin| margin <= 0.0));

    reference[1].truncate(3);
    reference[1][2] = tokens(&loaded, &long_prompt())[2];
    let validation =
        validate(&mut loaded, &prompts, Some(&reference), &options, &mut |_| {}).unwrap();
    let divergence = validation.first_divergence.unwrap();
    assert_eq!((divergence.index, divergence.expected, divergence.logit_margin), (3, None, None));
}

#[test]
fn validate_refuses_to_compare_nothing() {
    let mut loaded = Fixture::dense(Dtype::F32).load();
    let options = |max_tokens, runs| ValidateOptions {
        generate: GenerateOptions { max_tokens, ..GenerateOptions::default() },
        runs,
        patch: PatchOptions::default(),
    };
    let prompts = [PROMPT.to_vec()];
    for (prompts, reference, options) in [
        (&[][..], None, options(4, 1)),
        (&prompts[..], None, options(0, 1)),
        (&prompts[..], None, options(4, 0)),
        (&prompts[..], Some(&[][..]), options(4, 1)),
    ] {
        let result = validate(&mut loaded, prompts, reference, &options, &mut |_| {});
        assert!(matches!(result, Err(Error::Argument { .. })));
    }
}

#[test]
fn inspect_counts_parameters_and_bytes() {
    let fixture = Fixture::dense(Dtype::Bf16).quantized(q4());
    let dense = Fixture::dense(Dtype::Bf16);
    let dir = fixture.write();
    let seen = inspect(dir.path(), &PatchOptions::default()).unwrap();
    let parameters: usize = dense.weights.values().map(mlx::Array::size).sum();
    assert_eq!(seen.num_parameters, parameters as u64);
    assert!(seen.num_active_parameters < seen.num_parameters);
    let bytes: usize = fixture.weights.values().map(mlx::Array::nbytes).sum();
    assert_eq!(seen.memory.weights_bytes, bytes as u64);
    assert!(seen.memory.decode_read_bytes < seen.memory.weights_bytes);
    // 2 layers × (keys, values) × 2 heads × 32 × bf16
    assert_eq!(seen.memory.kv_bytes_per_token, 2 * 2 * 2 * 32 * 2);
    assert_eq!(seen.description.facts["num_moe_layers"], 2);
    assert_eq!(seen.weight_formats[&q4().to_string()], 18);
    assert_eq!(seen.patch.num_moe_modules, 2);
    assert_eq!(seen.num_files, 1);
}

/// The weights are a file with a header and a hole: 256 GB, which nothing could read.
#[test]
#[cfg(target_os = "linux")]
fn inspect_reads_no_weights() {
    const HUGE: usize = 1 << 30;
    let fixture = Fixture::dense(Dtype::Bf16);
    let dir = fixture.write();
    let mut config = fixture.config.clone();
    config["vocab_size"] = json!(HUGE);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, array) in &fixture.weights {
        let mut shape: Vec<usize> = array.shape().iter().map(|n| *n as usize).collect();
        if ["model.embed_tokens.weight", "lm_head.weight"].contains(&name.as_str()) {
            shape[0] = HUGE;
        }
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let path = dir.path().join("model.safetensors");
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    std::fs::write(&path, &bytes).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len((bytes.len() + end) as u64).unwrap();

    let seen = inspect(dir.path(), &PatchOptions::default()).unwrap();
    assert_eq!(seen.memory.weights_bytes, end as u64);
    assert!(end > 200 << 30);
}
