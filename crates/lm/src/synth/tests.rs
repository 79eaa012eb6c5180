use std::fs;

use mlx::Dtype;
use mlx::quantization::QuantizedWeight;

use super::*;

const TINY: &str = "qwen3-moe-tiny";

fn options(quantization: Option<Quantization>, seed: u64) -> SynthOptions {
    SynthOptions { like: TINY.to_owned(), layers: None, quantization, seed, hollow: false }
}

fn write(options: &SynthOptions) -> (tempfile::TempDir, SynthReport) {
    let folder = tempfile::tempdir().expect("folder");
    let report = synthesize(folder.path(), options, &mut |_, _| {}).expect("writes");
    (folder, report)
}

fn all_quantizations() -> Vec<Option<Quantization>> {
    let mut all = vec![None];
    for bits in [2, 3, 4, 5, 6, 8] {
        all.extend([32, 64].map(|group_size| Some(Quantization::affine(group_size, bits))));
    }
    all.extend([Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4].map(|m| Some(Quantization::default_of(m))));
    all
}

fn refusal(options: &SynthOptions) -> String {
    let folder = tempfile::tempdir().expect("folder");
    let error = synthesize(&folder.path().join("out"), options, &mut |_, _| {});
    assert!(!folder.path().join("out").exists(), "nothing may be left behind");
    error.expect_err("refused").to_string()
}

#[test]
fn every_name_has_a_config_that_a_model_loads() {
    for family in FAMILIES {
        let config = family.config(Some(4));
        let fields = config.get("text_config").and_then(Value::as_object).unwrap_or(&config);
        let vocab = fields["vocab_size"].as_u64().expect("vocab") as i32;
        let hidden = fields["hidden_size"].as_u64().expect("hidden") as i32;
        let of = ModelConfig::from_fields("config.json", config.clone(), None).expect("reads");
        let describe = models::find(&of.model_type).expect("known").describe;
        let num_moe_layers = describe(&of).expect("describes").facts["num_moe_layers"].clone();
        let (weights, num_layers) = record(&Value::Object(config), Dtype::Bf16).expect("loads");
        assert_eq!(num_layers, 4);
        assert_eq!(weights[0].shape, [vocab, hidden], "{}", family.name);
        assert_eq!(weights[0].role, Role::Embedding, "{}", family.name);
        let routers = weights.iter().filter(|weight| weight.role == Role::Router).count();
        assert!(routers > 0 && json!(routers) == num_moe_layers, "{}", family.name);
    }
}

#[test]
fn published_configs_raise_no_notes() {
    for family in FAMILIES {
        let config = ModelConfig::from_fields("config.json", family.config(Some(1)), None);
        let config = config.expect("reads");
        let load = models::find(&config.model_type).expect("known").load;
        load(&config, &Weights::recorder(Dtype::Bf16)).expect("loads");
        assert_eq!(config.unknown_fields(), [""; 0], "{}", family.name);
    }
}

#[test]
fn synthesized_checkpoints_load_in_every_format() {
    for quantization in all_quantizations() {
        let (folder, report) = write(&options(quantization, 0));
        let loaded = crate::models::load(folder.path());
        assert!(loaded.is_ok(), "{quantization:?}: {:?}", loaded.err());
        let file = fs::metadata(folder.path().join("model.safetensors")).expect("file");
        assert!(file.len() > report.bytes && file.len() < report.bytes + 20_000);
    }
}

#[test]
fn dequantized_weights_have_the_wanted_size() {
    for quantization in all_quantizations().into_iter().flatten() {
        let (folder, _) = write(&options(Some(quantization), 3));
        let tensors = mlx::io::load_safetensors(&folder.path().join("model.safetensors"));
        let tensors = tensors.expect("loads").arrays;
        let name = "model.layers.0.mlp.switch_mlp.up_proj";
        let part = |kind: &str| tensors.get(&format!("{name}.{kind}")).cloned();
        let weight = QuantizedWeight {
            w: part("weight").expect("weight"),
            scales: part("scales").expect("scales"),
            biases: part("biases"),
            quantization,
        };
        let values = weight.dequantize().expect("dequantizes");
        let values = values.astype(Dtype::F32).expect("casts").to_vec::<f32>().expect("reads");
        let count = values.len() as f32;
        let mean = values.iter().sum::<f32>() / count;
        let std = (values.iter().map(|v| v * v).sum::<f32>() / count).sqrt();
        let wanted = 1.0 / 128_f32.sqrt();
        assert!((std / wanted - 1.0).abs() < 0.06, "{quantization:?}: {std} for {wanted}");
        assert!(mean.abs() < 0.05 * wanted, "{quantization:?}: mean {mean}");
    }
}

#[test]
fn same_seed_gives_the_same_bytes_and_another_seed_others() {
    let bytes = |seed: u64| {
        let (folder, _) = write(&options(Some(Quantization::affine(64, 4)), seed));
        fs::read(folder.path().join("model.safetensors")).expect("reads")
    };
    assert!(bytes(5) == bytes(5));
    assert!(bytes(5) != bytes(6));
}

#[test]
fn layers_are_cut_on_request() {
    let cut = SynthOptions { layers: Some(1), ..options(Some(Quantization::affine(64, 4)), 0) };
    let (folder, report) = write(&cut);
    assert_eq!(report.num_layers, 1);
    let config = fs::read_to_string(folder.path().join("config.json")).expect("config");
    assert!(config.contains("\"num_hidden_layers\": 1"), "{config}");
}

#[test]
fn impossible_options_are_refused_before_anything_is_written() {
    let good = options(Some(Quantization::affine(64, 4)), 0);
    let unknown = SynthOptions { like: "llama".to_owned(), ..good.clone() };
    let error = refusal(&unknown);
    assert!(error.contains("known: ") && names().all(|name| error.contains(name)), "{error}");
    for layers in [0, MAX_LAYERS + 1] {
        let error = refusal(&SynthOptions { layers: Some(layers), ..good.clone() });
        assert!(error.contains("layers is"), "{error}");
    }
    for quantization in [
        Quantization::affine(64, 7),
        Quantization::affine(16, 4),
        Quantization { group_size: 64, bits: 4, mode: Mode::Mxfp4 },
    ] {
        let error = refusal(&SynthOptions { quantization: Some(quantization), ..good.clone() });
        assert!(error.contains("MLX has"), "{error}");
    }
}

#[test]
fn a_folder_in_use_is_refused_and_left_alone() {
    let (folder, _) = write(&options(None, 0));
    let before = fs::read(folder.path().join("config.json")).expect("config");
    let again = synthesize(folder.path(), &options(None, 1), &mut |_, _| {});
    let error = again.expect_err("refused").to_string();
    assert!(error.contains("config.json") && error.contains("new or empty"), "{error}");
    assert_eq!(fs::read(folder.path().join("config.json")).expect("config"), before);
    assert!(folder.path().join("model.safetensors").exists());

    // Without a config.json it is an earlier attempt that did not finish.
    fs::remove_file(folder.path().join("config.json")).expect("remove");
    synthesize(folder.path(), &options(None, 1), &mut |_, _| {}).expect("starts over");
}

#[test]
fn hollow_checkpoint_has_all_tensors_and_takes_no_room() {
    let dir = tempfile::tempdir().expect("tempdir");
    let full = options(Some(Quantization::affine(64, 4)), 0);
    let hollow = SynthOptions { hollow: true, ..full.clone() };
    let report = synthesize(&dir.path().join("hollow"), &hollow, &mut |_, _| {}).expect("hollow");
    assert_eq!(report, synthesize(&dir.path().join("full"), &full, &mut |_, _| {}).expect("full"));
    let inspect = |name: &str| {
        let inspection = crate::inspect(&dir.path().join(name), &Default::default());
        inspection.expect("inspect").weight_formats
    };
    assert_eq!(inspect("hollow"), inspect("full"));
    let size = |name: &str| {
        let path = dir.path().join(name).join("model.safetensors");
        std::fs::metadata(path).expect("weights")
    };
    assert_eq!(size("hollow").len(), size("full").len());
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::MetadataExt;
        assert!(size("hollow").blocks() < size("full").blocks() / 4);
    }
}
