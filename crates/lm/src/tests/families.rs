//! What holds for every row of the table of models, on the tiny checkpoints of `models/golden`: the numbers are those
//! of mlx-lm, and do not depend on how the work is cut up or fused.

use std::fs;
use std::path::PathBuf;

use mlx::quantization::{Mode, Quantization};
use mlx::{Array, Dtype};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cache::Cache;
use crate::config::ModelConfig;
use crate::error::Error;
use crate::models::{ALIASES, LoadedModel, MODELS, Model, find, load};
use crate::patch::{PatchOptions, Patterns, patch, sites_of};
use crate::patterns;
use crate::step::Step;
use crate::synth::Draft;

/// A file of `models/golden`.
#[derive(Deserialize)]
pub(super) struct Golden {
    seed: u64,
    config: Value,
    prompts: Vec<Said>,
}

/// What mlx-lm says after a prompt.
#[derive(Deserialize)]
struct Said {
    tokens: Vec<u32>,
    logits: Vec<f32>,
    greedy: Vec<u32>,
}

impl Golden {
    pub(super) fn of(model_type: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/models/golden");
        let path = folder.join(format!("{model_type}.json"));
        let text = fs::read_to_string(&path).unwrap_or_else(|_| {
            panic!(
                "models/golden has no {model_type}.json; scripts/family_golden/make.py writes it"
            )
        });
        serde_json::from_str(&text).unwrap()
    }

    pub(super) fn load(&self, dtype: Dtype, quantization: Option<Quantization>) -> LoadedModel {
        let mut draft = Draft::new(self.config.clone(), dtype, self.seed).unwrap();
        if let Some(quantization) = quantization {
            draft = draft.quantized(quantization).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        draft.write(dir.path()).unwrap();
        load(dir.path()).unwrap()
    }
}

/// Runs `check` on every family.
fn each(check: impl Fn(&str, &Golden)) {
    for row in MODELS {
        check(row.model_type, &Golden::of(row.model_type));
    }
}

fn q4() -> Option<Quantization> {
    Some(Quantization { group_size: 32, bits: 4, mode: Mode::Affine })
}

fn tokens(model: &dyn Model, n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 37 + 5) % model.vocab_size()).collect()
}

/// Logits after every token of one sequence.
fn logits(model: &dyn Model, tokens: &[u32], cache: &mut Cache) -> Vec<Vec<f32>> {
    let tokens = Array::from_slice(tokens, &[1, tokens.len() as i32]).unwrap();
    let out = model.forward(&Step::new(&tokens).all_logits(), &mut [cache]).unwrap();
    let flat = out.astype(Dtype::F32).unwrap().to_vec::<f32>().unwrap();
    assert!(flat.iter().all(|x| x.is_finite()));
    flat.chunks(out.dim(-1) as usize).map(<[f32]>::to_vec).collect()
}

/// Largest difference by the largest value.
fn distance(got: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let pairs = || got.iter().flatten().zip(expected.iter().flatten());
    let worst = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    worst / pairs().map(|(_, b)| b.abs()).fold(0.0, f32::max)
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|x| *x == best).unwrap() as u32
}

#[test]
fn table_has_no_name_twice() {
    let aliases = ALIASES.iter().map(|(alias, _)| *alias);
    let mut names: Vec<_> = MODELS.iter().map(|row| row.model_type).chain(aliases).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), MODELS.len() + ALIASES.len());
    for (alias, name) in ALIASES {
        assert_eq!(find(alias).unwrap().model_type, *name);
    }
}

#[test]
fn every_family_has_the_logits_and_tokens_of_mlx_lm() {
    each(|family, golden| {
        let loaded = golden.load(Dtype::F32, None);
        assert!(loaded.notes.is_empty(), "{family}: {:?}", loaded.notes);
        let model = loaded.model.as_ref();
        for said in &golden.prompts {
            let mut cache = model.make_cache();
            let (last, before) = said.tokens.split_last().unwrap();
            if !before.is_empty() {
                logits(model, before, &mut cache);
            }
            let mut now = logits(model, &[*last], &mut cache);
            let off = distance(&now, std::slice::from_ref(&said.logits));
            assert!(off <= 1e-4, "{family}, {} tokens: {off}", said.tokens.len());
            let mut greedy = Vec::new();
            while greedy.len() < said.greedy.len() {
                greedy.push(argmax(&now[0]));
                now = logits(model, &greedy[greedy.len() - 1..], &mut cache);
            }
            assert_eq!(greedy, said.greedy, "{family}, {} tokens", said.tokens.len());
        }
    });
}

#[test]
fn every_family_is_patched_bit_for_bit() {
    let affine = |group_size, bits| Quantization { group_size, bits, mode: Mode::Affine };
    let other = Quantization::default_of;
    let affine = [2, 3, 5, 6, 8].map(|bits| (Dtype::Bf16, Some(affine(32, bits))));
    let modes =
        [Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4].map(|mode| (Dtype::Bf16, Some(other(mode))));
    let types = [(Dtype::Bf16, q4()), (Dtype::F16, q4()), (Dtype::F32, q4()), (Dtype::F32, None)];
    each(|family, golden| {
        for (dtype, quantization) in affine.into_iter().chain(modes).chain(types) {
            let mut loaded = golden.load(dtype, quantization);
            let prompt = tokens(loaded.model.as_ref(), 40);
            let run = |loaded: &LoadedModel| {
                let mut cache = loaded.model.make_cache();
                let mut out = logits(loaded.model.as_ref(), &prompt, &mut cache);
                for token in &prompt[..6] {
                    out.extend(logits(loaded.model.as_ref(), &[*token], &mut cache));
                }
                out
            };
            let stock = run(&loaded);
            let names = patterns::names().iter().map(|name| (*name).to_owned()).collect();
            for patterns in [Patterns::Auto, Patterns::Names(names)] {
                patch(&mut loaded, &PatchOptions { patterns, ..PatchOptions::default() }).unwrap();
                assert!(run(&loaded) == stock, "{family} {dtype} {quantization:?}");
            }
        }
    });
}

#[test]
fn every_family_reads_a_prompt_in_pieces_as_at_once() {
    each(|family, golden| {
        let loaded = golden.load(Dtype::F32, q4());
        let model = loaded.model.as_ref();
        let prompt = tokens(model, 50);
        let at_once = logits(model, &prompt, &mut model.make_cache());
        for size in [1, 7, 32] {
            let mut cache = model.make_cache();
            let pieces: Vec<_> =
                prompt.chunks(size).flat_map(|piece| logits(model, piece, &mut cache)).collect();
            assert_eq!(cache.len() as usize, prompt.len());
            // products of one row and of many take other routes
            let off = distance(&pieces, &at_once);
            assert!(off <= 2e-5, "{family}, pieces of {size}: {off}");
        }
    });
}

/// Rows of different length that start at different positions, each with a cache of its own.
#[test]
fn every_family_gives_ragged_rows_the_bits_that_they_have_alone() {
    each(|family, golden| {
        for patterns in [Patterns::Off, Patterns::Auto] {
            let mut loaded = golden.load(Dtype::Bf16, q4());
            patch(&mut loaded, &PatchOptions { patterns, ..PatchOptions::default() }).unwrap();
            let model = loaded.model.as_ref();
            let added: [&[u32]; 4] = [&[5, 6, 7], &[8], &[9, 10], &[11, 12, 13]];
            let mut caches: Vec<Cache> = [3, 70, 1, 19]
                .map(|held| {
                    let mut cache = model.make_cache();
                    logits(model, &tokens(model, held), &mut cache);
                    cache
                })
                .into();
            let alone: Vec<_> = added
                .iter()
                .zip(&caches)
                .map(|(row, cache)| logits(model, row, &mut cache.clone()).pop().unwrap())
                .collect();
            let pad = |row: &&[u32]| row.iter().copied().chain([0; 3]).take(3).collect::<Vec<_>>();
            let padded = added.iter().flat_map(pad).collect::<Vec<_>>();
            let lengths = added.map(|row| row.len() as i32);
            let input = Array::from_slice(&padded, &[4, 3]).unwrap();
            let step = Step { lengths: Some(&lengths), ..Step::new(&input) };
            assert_eq!(together(model, &step, &mut caches), alone.concat(), "{family}");

            // and the next step, where all rows add one token
            let next = Array::from_slice(&[21_u32, 22, 23, 24], &[4, 1]).unwrap();
            let alone: Vec<_> = (21..25)
                .zip(&caches)
                .flat_map(|(token, cache)| logits(model, &[token], &mut cache.clone()))
                .collect();
            let both = together(model, &Step::new(&next), &mut caches);
            assert_eq!(both, alone.concat(), "{family}, next step");
        }
    });
}

/// The golden configuration with one field of the text model set, and the field's name in messages.
fn changed(golden: &Golden, field: &str, value: Value) -> (ModelConfig, String) {
    let mut fields = golden.config.as_object().unwrap().clone();
    let name = match fields.get_mut("text_config") {
        Some(text) => {
            text.as_object_mut().unwrap().insert(field.to_owned(), value);
            format!("text_config.{field}")
        }
        None => {
            fields.insert(field.to_owned(), value);
            field.to_owned()
        }
    };
    (ModelConfig::from_fields("config.json", fields, None).unwrap(), name)
}

#[test]
fn every_family_tells_of_a_key_that_it_does_not_know() {
    each(|family, golden| {
        let (config, name) = changed(golden, "something_new", json!(1));
        (find(family).unwrap().describe)(&config).unwrap();
        assert_eq!(config.unknown_fields(), [name], "{family}");
    });
}

#[test]
fn every_family_names_file_and_field_of_a_wrong_type() {
    each(|family, golden| {
        let describe = find(family).unwrap().describe;
        let text = golden.config.get("text_config").unwrap_or(&golden.config);
        let mut refused = Vec::new();
        for key in text.as_object().unwrap().keys().filter(|key| *key != "model_type") {
            let (config, name) = changed(golden, key, json!({ "no": "sense" }));
            match describe(&config) {
                Err(Error::Config { path, field, .. }) => {
                    assert!(path.ends_with("config.json"));
                    assert!(field.starts_with(&name), "{family}: `{field}` for `{name}`");
                    refused.push(key.as_str());
                }
                Err(error) => panic!("{family}: {error}"),
                // fields that nothing reads
                Ok(_) => {}
            }
        }
        for field in ["hidden_size", "num_hidden_layers", "num_attention_heads"] {
            assert!(refused.contains(&field), "{family}: {refused:?}");
        }
        assert!(refused.len() > 8, "{family}: {refused:?}");
    });
}

fn together(model: &dyn Model, step: &Step<'_>, caches: &mut [Cache]) -> Vec<f32> {
    let mut rows: Vec<&mut Cache> = caches.iter_mut().collect();
    let out = model.forward(step, &mut rows).unwrap();
    out.astype(Dtype::F32).unwrap().to_vec().unwrap()
}

/// A user reads and writes these paths: in reports, in `--exclude`, in a checkpoint's own settings.
#[test]
fn every_site_of_a_packed_matrix_is_spelled_as_its_weight_is() {
    each(|family, golden| {
        let draft = Draft::new(golden.config.clone(), Dtype::F32, 1).unwrap();
        let draft = draft.quantized(q4().unwrap()).unwrap();
        let mut loaded = golden.load(Dtype::F32, q4());
        for site in sites_of(loaded.model.as_mut()) {
            if ["quantized_linear", "rms_norm"].contains(&site.pattern) {
                // the norm of a router may have a scale that something is folded into
                let module = site.module.as_str();
                let has = |name: &str| draft.weights.contains_key(&format!("{module}.{name}"));
                assert!(has("weight") || has("scale"), "{family}: {module}");
            }
        }
    });
}
