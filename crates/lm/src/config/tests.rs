use mlx::quantization::{Mode, Quantization};
use serde::Deserialize;
use serde_json::json;

use super::*;

fn parse(value: Value) -> Result<ModelConfig> {
    let Value::Object(fields) = value else { panic!("not an object") };
    ModelConfig::from_fields("config.json", fields, None)
}

fn message(value: Value) -> String {
    parse(value).unwrap_err().to_string()
}

#[derive(Debug, Deserialize)]
struct Nested {
    factor: Positive,
}

#[derive(Debug, Deserialize)]
struct Toy {
    size: Size,
    #[serde(default)]
    count: Count,
    #[serde(alias = "layer_norm_eps")]
    eps: Option<Positive>,
    nested: Option<Nested>,
    #[serde(default)]
    list: Vec<Count>,
    #[serde(default)]
    flag: bool,
}

impl Fields for Toy {
    const TOP_LEVEL: &'static [&'static str] = &["count"];
    const UNUSED: &'static [&'static str] = &["hidden_act"];
    fn check(&self, config: &ModelConfig) -> Result<()> {
        match &self.nested {
            None if self.flag => Err(config.error("nested", "is missing")),
            Some(nested) if nested.factor.f64() > 9.0 => {
                Err(config.error("nested.factor", "is over 9"))
            }
            _ => Ok(()),
        }
    }
}

fn toy(mut value: Value) -> Result<Toy> {
    value["model_type"] = json!("toy");
    parse(value)?.parse()
}

fn refusal(value: Value) -> String {
    toy(value).unwrap_err().to_string()
}

#[test]
fn model_type_missing_names_file_and_field() {
    assert_eq!(message(json!({})), "config.json: field `model_type` is missing");
    assert!(message(json!({"model_type": 3})).contains("is 3, expected a string"));
}

#[test]
fn fields_have_defaults_aliases_and_null_counts_as_absent() {
    let toy = toy(json!({"size": 3, "layer_norm_eps": 1, "nested": null, "count": null})).unwrap();
    assert_eq!((*toy.size, *toy.count, toy.eps.unwrap().f64()), (3, 0, 1.0));
    assert!(toy.nested.is_none() && toy.list.is_empty());
}

#[test]
fn whole_number_rejects_negative_zero_huge_and_fractional() {
    let bad = [json!(-1), json!(0), json!(1_i64 << 40), json!(u64::MAX), json!(1.5), json!("8")];
    for value in bad.into_iter().chain([json!(true), json!([8]), json!({})]) {
        let message = refusal(json!({"size": value}));
        let expected =
            format!("config.json: field `size` is {value}, expected a whole number from 1");
        assert_eq!(message, expected);
    }
    assert_eq!(*toy(json!({"size": i32::MAX})).unwrap().size, i32::MAX);
    assert!(refusal(json!({})).ends_with("field `size` is missing"));
    assert!(refusal(json!({"size": null})).ends_with("field `size` is missing"));
}

#[test]
fn positive_rejects_zero_and_overflow() {
    for bad in [json!(0.0), json!(-1e-6), json!(1e300), json!(1e-60), json!("NaN")] {
        let message = refusal(json!({"size": 1, "eps": bad}));
        assert!(message.contains(&format!("field `eps` is {bad}, expected a number")), "{message}");
    }
}

#[test]
fn nested_fields_are_named_with_their_path() {
    let message = refusal(json!({"size": 1, "nested": {"factor": -2}}));
    assert!(message.contains("`nested.factor` is -2, expected a number above zero"), "{message}");
    let message = refusal(json!({"size": 1, "nested": {}}));
    assert!(message.contains("`nested.factor` is missing"), "{message}");
    let message = refusal(json!({"size": 1, "list": [0, 1, -2]}));
    assert!(message.contains("`list[2]` is -2, expected a whole number from 0"), "{message}");
    let message = refusal(json!({"size": 1, "flag": true}));
    assert!(message.contains("`nested` is missing"), "{message}");
    // an echo of the file is cut
    assert!(refusal(json!({"size": vec![1; 100_000]})).len() < 200);
}

#[test]
fn text_config_holds_the_fields_but_for_some_of_the_top_level() {
    let both = json!({"size": 9, "count": 5, "text_config": {"size": 3, "count": 4, "odd": 1}});
    let toy = toy(both).unwrap();
    assert_eq!((*toy.size, *toy.count), (3, 5));
    let message = refusal(json!({"text_config": {"size": 0}}));
    assert!(message.contains("`text_config.size` is 0"), "{message}");
    let message = refusal(json!({"count": -1, "text_config": {"size": 1}}));
    assert!(message.contains("`count` is -1"), "{message}");
    assert!(refusal(json!({"text_config": 3})).contains("expected an object"));
    let vocab = |value| parse(value).unwrap().vocab_size();
    let nested = json!({"model_type": "x", "text_config": {"vocab_size": 7}});
    assert_eq!(vocab(nested).unwrap(), 7);
    assert!(vocab(json!({"model_type": "x"})).is_err());
}

#[test]
fn unknown_fields_are_collected_and_common_ones_are_not() {
    let mut value = json!({"size": 1, "odd": 2, "nested": {"factor": 1, "odder": {}}});
    for key in ["architectures", "torch_dtype", "transformers_version", "quantization_config"] {
        value[key] = Value::Null;
    }
    value["use_cache"] = json!(true);
    value["switched_off"] = json!(false);
    value["hidden_act"] = json!("silu");
    value["model_type"] = json!("toy");
    let config = parse(value).unwrap();
    assert!(config.unknown_fields().is_empty());
    config.parse::<Toy>().unwrap();
    assert_eq!(config.unknown_fields(), ["odd", "nested.odder"]);
    let config = parse(json!({"model_type": "toy", "text_config": {"size": 1, "odd": 1}})).unwrap();
    config.parse::<Toy>().unwrap();
    assert_eq!(config.unknown_fields(), ["text_config.odd"]);
}

#[test]
fn generation_config_unreadable_is_an_error_and_malformed_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.json");
    let generation = dir.path().join("generation_config.json");
    fs::write(config, r#"{"model_type": "x", "eos_token_id": 3}"#).unwrap();
    assert_eq!(ModelConfig::load(dir.path()).unwrap().eos_token_ids, [3]);
    fs::write(&generation, "{").unwrap();
    assert_eq!(ModelConfig::load(dir.path()).unwrap().eos_token_ids, [3]);
    fs::write(&generation, [0xff, 0xfe]).unwrap();
    let error = ModelConfig::load(dir.path()).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if *path == generation), "{error}");
    fs::remove_file(&generation).unwrap();
    fs::create_dir(&generation).unwrap();
    let error = ModelConfig::load(dir.path()).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if *path == generation), "{error}");
}

#[test]
fn non_finite_literals_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for literal in ["NaN", "Infinity", "-Infinity"] {
        let text = format!("{{\n \"model_type\": \"x\",\n \"rms_norm_eps\": {literal}\n}}");
        fs::write(dir.path().join("config.json"), text).unwrap();
        let message = ModelConfig::load(dir.path()).unwrap_err().to_string();
        assert!(message.contains(&format!("line 3 holds {literal}")), "{message}");
    }
}

#[test]
fn eos_follows_mlx_lm_precedence() {
    let fields =
        |eos: Value| json!({"model_type": "x", "eos_token_id": eos}).as_object().unwrap().clone();
    let eos = |own: Value, generation: Value| {
        let generation = json!({"eos_token_id": generation}).as_object().unwrap().clone();
        ModelConfig::from_fields("c", fields(own), Some(&generation)).unwrap().eos_token_ids
    };
    assert_eq!(eos(json!(7), json!([1, 2])), [1, 2]);
    assert_eq!(eos(json!([7, 8]), json!(3)), [3]);
    // falsy in Python: config.json's stays
    assert_eq!(eos(json!(7), json!(0)), [7]);
    assert_eq!(eos(json!(7), json!([])), [7]);
    assert_eq!(eos(Value::Null, Value::Null), [0_u32; 0]);
    assert!(parse(json!({"model_type": "x", "eos_token_id": -1})).is_err());
    assert!(parse(json!({"model_type": "x", "eos_token_id": "</s>"})).is_err());
}

#[test]
fn quantization_reads_default_and_overrides() {
    let config = parse(json!({"model_type": "x", "quantization": {
        "group_size": 64, "bits": 4, "mode": "affine",
        "a.gate": {"group_size": 32, "bits": 8}, "b": false, "c": true}}))
    .unwrap();
    let q = config.quantization.unwrap();
    assert_eq!((q.default.group_size, q.default.bits), (64, 4));
    assert_eq!(q.overrides["a.gate"].unwrap().bits, 8);
    assert!(q.overrides["b"].is_none());
    assert_eq!(q.overrides["c"].unwrap().bits, 4);
    assert_eq!(q.overrides.len(), 3);
}

#[test]
fn quantization_reads_config_key_and_method() {
    let config = |q| parse(json!({"model_type": "x", "quantization_config": q}));
    let q = config(json!({"group_size": 32, "bits": 6})).unwrap().quantization.unwrap();
    assert_eq!((q.default.group_size, q.default.bits), (32, 6));
    let q = config(json!({"quant_method": "mxfp4"})).unwrap().quantization.unwrap();
    assert_eq!(q.default.mode, Mode::Mxfp4);
    let default = |value| config(value).unwrap().quantization.map(|q| q.default);
    let of = |mode| Some(Quantization::default_of(mode));
    // codes that the family's rules unpack
    let blocks = json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    assert_eq!(default(blocks), None);
    let powers =
        json!({"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [32, 32]});
    assert_eq!(default(powers), of(Mode::Mxfp8));
    for (format, setting) in [
        ("pack-quantized", Some(Quantization::affine(32, 4))),
        ("mxfp4-pack-quantized", of(Mode::Mxfp4)),
        ("nvfp4-pack-quantized", of(Mode::Nvfp4)),
    ] {
        let value = json!({"quant_method": "compressed-tensors", "format": format});
        assert_eq!(default(value), setting);
    }
    for (key, value) in [
        ("format", json!({"quant_method": "compressed-tensors", "format": "float-quantized"})),
        ("quant_method", json!({"quant_method": "bitsandbytes"})),
    ] {
        let message = config(value).unwrap_err().to_string();
        assert!(message.contains(&format!("quantization_config.{key}")), "{message}");
        assert!(message.contains("take the dense checkpoint"), "{message}");
    }
}

#[test]
fn quantization_rejects_what_mlx_lacks() {
    for bad in [
        json!({"group_size": 64}),
        json!({"bits": 4}),
        json!({"group_size": 48, "bits": 4}),
        json!({"group_size": 64, "bits": 7}),
        json!({"group_size": 64, "bits": -4}),
        json!({"group_size": 64, "bits": "4"}),
        json!({"group_size": 64, "bits": 4, "mode": "mxfp4"}),
        json!({"group_size": 64, "bits": 4, "mode": "int4"}),
        json!({"group_size": 64, "bits": 4, "model.norm": {"bits": 1}}),
        json!({"group_size": 16, "bits": 4, "mode": "nvfp4", "global_scale": true}),
        json!(4),
    ] {
        let result = parse(json!({"model_type": "x", "quantization": bad}));
        assert!(matches!(result, Err(Error::Config { .. })), "{bad}");
    }
}

#[test]
fn scales_of_experts_beside_nvfp4_are_refused_by_name() {
    let with = |scale: Value| {
        let experts = json!({"group_size": 16, "bits": 4, "mode": "nvfp4", "global_scale": scale});
        parse(json!({"model_type": "x", "quantization": {
            "group_size": 16, "bits": 4, "mode": "nvfp4", "a.switch_mlp.up_proj": experts}}))
    };
    assert_eq!(with(json!(false)).unwrap().quantization.unwrap().overrides.len(), 1);
    let message = with(json!(true)).unwrap_err().to_string();
    let field = "field `quantization.a.switch_mlp.up_proj.global_scale` asks for a scale";
    assert!(message.contains(field), "{message}");
}

/// A type that two families share, as one of them reads it.
#[derive(Debug, Deserialize)]
struct Shared {
    size: Size,
    rank: Option<Size>,
    #[serde(default)]
    _other: Option<Size>,
}

impl Fields for Shared {
    const DEFAULTS: &'static [(&'static str, &'static str)] = &[("size", "7"), ("rank", "3")];
    const ASSUMED: &'static [(&'static str, &'static str)] =
        &[("act", "\"silu\""), ("part", "1.0"), ("even", "true")];
    const FOREIGN: &'static [&'static str] = &["_other"];
}

#[test]
fn absent_fields_have_defaults_and_null_ones_none() {
    let read = |value: Value| parse(value).unwrap().parse::<Shared>();
    let absent = read(json!({"model_type": "toy"})).unwrap();
    assert_eq!((*absent.size, absent.rank.map(|rank| *rank)), (7, Some(3)));
    assert!(read(json!({"model_type": "toy", "rank": null})).unwrap().rank.is_none());
    let error = read(json!({"model_type": "toy", "size": null})).unwrap_err().to_string();
    assert_eq!(error, "config.json: field `size` is missing");
    let error = read(json!({"model_type": "toy", "rank": "x"})).unwrap_err().to_string();
    assert!(error.contains("field `rank` is \"x\""), "{error}");
}

#[test]
fn assumed_fields_are_told_where_they_differ_and_foreign_ones_where_they_are() {
    let told = |value: Value| {
        let config = parse(value).unwrap();
        config.parse::<Shared>().unwrap();
        config.unknown_fields().join(" ")
    };
    let silent =
        json!({"model_type": "toy", "act": "silu", "part": 1, "even": true, "_other": null});
    assert_eq!(told(silent), "");
    let all = json!({"model_type": "toy", "act": "gelu", "part": 0.5, "even": false, "_other": 1});
    assert_eq!(told(all), "act part even _other");
    let nested = json!({"model_type": "toy", "text_config": {"act": "gelu", "_other": 1}});
    assert_eq!(told(nested), "text_config.act text_config._other");
}
