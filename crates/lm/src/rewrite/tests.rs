//! Rules against what mlx-lm 0.32.0's `sanitize` functions do, on made-up checkpoints of their layouts.

use std::fs;

use mlx::quantization::{Quantization, QuantizedWeight};
use mlx::{Array, ops, random};

use super::*;
use crate::placement::Placement;
use crate::weights::Weights;

/// A checkpoint on disk and the arrays that it was made of.
struct Made {
    dir: tempfile::TempDir,
    arrays: BTreeMap<String, Array>,
}

impl Made {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), arrays: BTreeMap::new() }
    }

    fn add(mut self, name: &str, array: Array) -> Self {
        self.arrays.insert(name.to_owned(), array);
        self
    }

    /// Random values of this shape.
    fn float(self, name: &str, shape: &[i32], dtype: Dtype) -> Self {
        let key = random::key(name.bytes().map(u64::from).sum()).unwrap();
        let array = random::normal(shape, Dtype::F32, 0.0, 1.0, Some(&key)).unwrap();
        self.add(name, array.astype(dtype).unwrap())
    }

    /// Random bytes of this shape.
    fn bytes(self, name: &str, shape: &[i32]) -> Self {
        let size: i32 = shape.iter().product();
        let bytes: Vec<u8> = (0..size).map(|i| (i * 37 + i / 11) as u8).collect();
        self.add(name, Array::from_slice(&bytes, shape).unwrap())
    }

    fn get(&self, name: &str) -> &Array {
        &self.arrays[name]
    }

    fn open(&self) -> Weights {
        let file = self.dir.path().join("model.safetensors");
        let arrays = self.arrays.iter().map(|(name, array)| (name.as_str(), array));
        mlx::io::save_safetensors(&file, arrays, []).unwrap();
        let checkpoint = Checkpoint::open(self.dir.path()).unwrap();
        Weights::new(checkpoint, None, Placement::default()).unwrap()
    }

    fn rewritten(&self, rules: &Rules) -> Table {
        self.try_rewrite(rules).unwrap()
    }

    fn try_rewrite(&self, rules: &Rules) -> Result<Table> {
        self.open();
        let checkpoint = Checkpoint::open(self.dir.path())?;
        let mut table = Table::of(&checkpoint);
        table.rewrite(rules, &checkpoint)?;
        Ok(table)
    }

    fn refusal(&self, rules: &Rules) -> String {
        self.try_rewrite(rules).unwrap_err().to_string()
    }

    /// The array that a table's tensor becomes; its shape and dtype are those that the rules foretold.
    fn array(&self, table: &Table, name: &str) -> Array {
        let tensor =
            table.tensors.get(name).unwrap_or_else(|| panic!("no {name}: {:?}", names(table)));
        let array = tensor.array(&|name| Ok(self.get(name).clone())).unwrap();
        assert_eq!(array.shape(), tensor.shape, "{name}");
        assert_eq!(array.dtype(), tensor.dtype, "{name}");
        array
    }

    #[track_caller]
    fn same(&self, table: &Table, name: &str, expected: &Array) {
        let got = self.array(table, name);
        assert_eq!(got.shape(), expected.shape(), "{name}");
        assert_eq!(got.to_bytes().unwrap(), expected.to_bytes().unwrap(), "{name}");
    }
}

fn names(table: &Table) -> Vec<&str> {
    table.tensors.keys().map(String::as_str).collect()
}

const EXPERT: &str = "model.layers.{l#}.mlp.experts.{e#}.{p:gate_proj|up_proj|down_proj}.{k}";
const STACKED: &str = "model.layers.{l}.mlp.switch_mlp.{p}.{k}";

fn experts(count: i32) -> Made {
    let mut made = Made::new().float("model.layers.10.input_layernorm.weight", &[8], Dtype::F32);
    for layer in [0, 10] {
        for e in 0..count {
            for p in ["gate_proj", "up_proj", "down_proj"] {
                let name = format!("model.layers.{layer}.mlp.experts.{e}.{p}.weight");
                made = made.float(&name, &[4, 8], Dtype::Bf16);
            }
        }
    }
    made
}

#[test]
fn experts_are_stacked_in_the_order_of_their_numbers() {
    let made = experts(12);
    let table = made.rewritten(&Rules::new().stack(EXPERT, "e", 12, STACKED));
    assert_eq!(table.tensors.len(), 7);
    for layer in [0, 10] {
        let parts: Vec<_> = (0..12)
            .map(|e| made.get(&format!("model.layers.{layer}.mlp.experts.{e}.up_proj.weight")))
            .collect();
        let name = format!("model.layers.{layer}.mlp.switch_mlp.up_proj.weight");
        made.same(&table, &name, &ops::stack(parts, 0).unwrap());
    }
}

#[test]
fn number_of_experts_beyond_the_files_is_refused_without_counting_to_it() {
    let made = experts(3);
    let start = std::time::Instant::now();
    let message = made.refusal(&Rules::new().stack(EXPERT, "e", i32::MAX, STACKED));
    let name = "model.layers.0.mlp.experts.3.down_proj.weight";
    assert!(message.contains(name) && message.contains("missing"), "{message}");
    assert!(start.elapsed().as_secs() < 2);
    // more experts than the configuration has are left over
    let table = made.rewritten(&Rules::new().stack(EXPERT, "e", 2, STACKED));
    assert!(names(&table).contains(&"model.layers.0.mlp.experts.2.up_proj.weight"));
}

#[test]
fn experts_of_two_shapes_or_types_name_file_and_tensor() {
    for odd in [ops::ones(&[4, 9], Dtype::Bf16), ops::ones(&[4, 8], Dtype::F32)] {
        let made = experts(3).add("model.layers.10.mlp.experts.1.up_proj.weight", odd.unwrap());
        let message = made.refusal(&Rules::new().stack(EXPERT, "e", 3, STACKED));
        assert!(message.contains("model.safetensors"), "{message}");
        assert!(message.contains("`model.layers.10.mlp.experts.0.up_proj.weight`"), "{message}");
        assert!(
            message.contains("`model.layers.10.mlp.experts.0.up_proj.weight`, stacked"),
            "{message}"
        );
    }
}

#[test]
fn rules_read_nothing() {
    let made = experts(2);
    let weights = made.open();
    fs::remove_file(made.dir.path().join("model.safetensors")).unwrap();
    weights.rewrite(&Rules::new().stack(EXPERT, "e", 2, STACKED)).unwrap();
    let scope = weights.root().pp("model.layers.0.mlp.switch_mlp.up_proj");
    assert!(scope.has("weight"));
    assert!(scope.take_float("weight", &[2, 4, 8]).is_err(), "the file is gone");
}

/// deepseek_v3, glm4_moe_lite: `kv_b_proj` into what absorbs queries and what expands values.
fn absorbed(heads: i32, nope: i32, v: i32, lora: i32) -> Rules {
    let by_head = Op::Reshape(vec![heads, nope + v, -1]);
    let keys = Op::Slice { axis: 1, start: 0, stop: nope };
    let values = Op::Slice { axis: 1, start: nope, stop: nope + v };
    let at = "model.layers.{l#}.self_attn";
    Rules::new().requantize(
        &format!("{at}.kv_b_proj"),
        lora,
        vec![
            (format!("{at}.embed_q"), vec![by_head.clone(), keys, Op::Swap(-1, -2)]),
            (format!("{at}.unembed_out"), vec![by_head, values]),
        ],
    )
}

#[test]
fn kv_b_proj_dense_is_cut_by_heads() {
    let name = "model.layers.3.self_attn.kv_b_proj.weight";
    let made = Made::new().float(name, &[3 * (32 + 64), 128], Dtype::Bf16);
    let table = made.rewritten(&absorbed(3, 32, 64, 128));
    let v = ops::reshape(made.get(name), &[3, 96, -1]).unwrap();
    let keys = ops::swapaxes(&ops::slice_axis(&v, 1, 0, 32).unwrap(), -1, -2).unwrap();
    made.same(&table, "model.layers.3.self_attn.embed_q.weight", &keys);
    let values = ops::slice_axis(&v, 1, 32, 96).unwrap();
    made.same(&table, "model.layers.3.self_attn.unembed_out.weight", &values);
    assert_eq!(table.tensors.len(), 2);
}

#[test]
fn kv_b_proj_quantized_is_unpacked_cut_and_packed_again() {
    let dense = random::normal(&[3 * 96, 128], Dtype::F32, 0.0, 1.0, None).unwrap();
    for quantization in [Quantization::affine(32, 4), Quantization::affine(32, 8)] {
        let packed =
            QuantizedWeight::quantize(&dense.astype(Dtype::Bf16).unwrap(), quantization).unwrap();
        let at = "model.layers.3.self_attn";
        let made = Made::new()
            .add(&format!("{at}.kv_b_proj.weight"), packed.w.clone())
            .add(&format!("{at}.kv_b_proj.scales"), packed.scales.clone())
            .add(&format!("{at}.kv_b_proj.biases"), packed.biases.clone().unwrap());
        let table = made.rewritten(&absorbed(3, 32, 64, 128));
        let v = ops::reshape(&packed.dequantize().unwrap(), &[3, 96, -1]).unwrap();
        let keys = ops::swapaxes(&ops::slice_axis(&v, 1, 0, 32).unwrap(), -1, -2).unwrap();
        let values = ops::slice_axis(&v, 1, 32, 96).unwrap();
        for (name, dense) in [("embed_q", keys), ("unembed_out", values)] {
            let dense = ops::contiguous(&dense).unwrap();
            let expected = QuantizedWeight::quantize(&dense, quantization).unwrap();
            made.same(&table, &format!("{at}.{name}.weight"), &expected.w);
            made.same(&table, &format!("{at}.{name}.scales"), &expected.scales);
            made.same(&table, &format!("{at}.{name}.biases"), &expected.biases.unwrap());
        }
        assert_eq!(table.tensors.len(), 6);
        // a configuration that contradicts the shapes
        assert!(made.refusal(&absorbed(3, 32, 64, 96)).contains("kv_b_proj.weight"));
        assert!(made.refusal(&absorbed(3, 32, 63, 128)).contains("cannot become"));
    }
}

#[test]
fn gpt_oss_blocks_become_interleaved_projections() {
    let at = "model.layers.0.mlp.experts";
    let made = Made::new()
        .bytes(&format!("{at}.gate_up_proj_blocks"), &[2, 6, 3, 16])
        .bytes(&format!("{at}.gate_up_proj_scales"), &[2, 6, 3])
        .float(&format!("{at}.gate_up_proj_bias"), &[2, 6], Dtype::Bf16)
        .bytes(&format!("{at}.down_proj_blocks"), &[2, 8, 1, 16])
        .bytes(&format!("{at}.down_proj_scales"), &[2, 8, 1])
        .float(&format!("{at}.down_proj_bias"), &[2, 8], Dtype::Bf16);
    let packed = [Op::View(Dtype::U32), Op::Flatten];
    let every = |axis, start| Op::Every { axis, start, step: 2 };
    let at_l = "model.layers.{l#}.mlp.experts";
    let half = |part: &str, start| {
        let ops = [&packed[..], &[every(-2, start)]].concat();
        (format!("{at_l}.{part}.weight"), ops)
    };
    let rules = Rules::new()
        .become_each(
            &format!("{at_l}.gate_up_proj_blocks"),
            vec![half("gate_proj", 0), half("up_proj", 1)],
        )
        .deinterleave(
            &format!("{at_l}.gate_up_proj_scales"),
            -2,
            &[&format!("{at_l}.gate_proj.scales"), &format!("{at_l}.up_proj.scales")],
        )
        .deinterleave(
            &format!("{at_l}.gate_up_proj_bias"),
            -1,
            &[&format!("{at_l}.gate_proj.bias"), &format!("{at_l}.up_proj.bias")],
        )
        .become_each(
            &format!("{at_l}.down_proj_blocks"),
            vec![(format!("{at_l}.down_proj.weight"), packed.to_vec())],
        )
        .rename(&format!("{at_l}.down_proj_{{k:scales|bias}}"), &format!("{at_l}.down_proj.{{k}}"));
    let table = made.rewritten(&rules);
    let blocks = ops::view(made.get(&format!("{at}.gate_up_proj_blocks")), Dtype::U32).unwrap();
    let blocks = ops::flatten(&blocks, -2, -1).unwrap();
    for (start, name) in [(0, "gate_proj"), (1, "up_proj")] {
        let rows =
            |a: &Array| ops::slice_strided(a, &[0, start, 0], a.shape(), &[1, 2, 1]).unwrap();
        made.same(&table, &format!("{at}.{name}.weight"), &rows(&blocks));
        let scales = rows(made.get(&format!("{at}.gate_up_proj_scales")));
        made.same(&table, &format!("{at}.{name}.scales"), &scales);
        let bias = made.get(&format!("{at}.gate_up_proj_bias"));
        let bias = ops::slice_strided(bias, &[0, start], &[2, 6], &[1, 2]).unwrap();
        made.same(&table, &format!("{at}.{name}.bias"), &bias);
    }
    assert_eq!(made.array(&table, &format!("{at}.down_proj.weight")).shape(), [2, 8, 4]);
    assert_eq!(table.tensors.len(), 9);
}

#[test]
fn fp8_blocks_are_scaled_and_e4m3_is_read_right() {
    let name = "model.layers.0.mlp.up_proj.weight";
    let made = Made::new()
        .bytes(name, &[130, 200])
        .float(&format!("{name}_scale_inv"), &[2, 2], Dtype::F32)
        .float("model.norm.weight", &[4], Dtype::Bf16);
    let rules = Rules::new().scale_blocks("{m*}.weight_scale_inv", "{m}.weight", 128);
    let table = made.rewritten(&rules);
    assert_eq!(names(&table), [name, "model.norm.weight"]);
    let got = made.array(&table, name).astype(Dtype::F32).unwrap().to_vec::<f32>().unwrap();
    let codes = made.get(name).to_vec::<u8>().unwrap();
    let scales = made.get(&format!("{name}_scale_inv")).to_vec::<f32>().unwrap();
    let value = |code: u8| match code & 0x7f {
        0 => Some(0.0),
        1 => Some(f32::exp2(-9.0)),
        0x38 => Some(1.0),
        0x7e => Some(448.0),
        0x7f => Some(f32::NAN),
        _ => None,
    };
    let mut seen = 0;
    for (i, code) in codes.iter().enumerate() {
        let Some(value) = value(*code) else { continue };
        seen += 1;
        let value = if code & 0x80 == 0 { value } else { -value };
        let scale = scales[i / 200 / 128 * 2 + i % 200 / 128];
        let expected = mlx::bf16::from_f32(value * scale).to_f32();
        assert!(got[i] == expected || expected.is_nan() && got[i].is_nan(), "{code:#x} at {i}");
    }
    assert!(seen > 500);
    let odd = Made::new().bytes(name, &[130, 200]).float(
        &format!("{name}_scale_inv"),
        &[1, 2],
        Dtype::F32,
    );
    assert!(odd.refusal(&rules).contains(name));
    let alone = Made::new().float(&format!("{name}_scale_inv"), &[1, 2], Dtype::F32);
    assert!(
        matches!(alone.try_rewrite(&rules), Err(Error::MissingWeight { name: n, .. }) if n == name)
    );
}

#[test]
fn compressed_int4_gets_biases_made_of_its_scales() {
    let made = Made::new()
        .add("a.q.weight_packed", Array::from_slice(&[7_i32, -1, 3, 4], &[2, 2]).unwrap())
        .float("a.q.weight_scale", &[2, 1], Dtype::Bf16)
        .add("a.q.weight_shape", Array::from_slice(&[2_i32, 16], &[2]).unwrap());
    let rules = Rules::new()
        .drop("{m*}.weight_shape")
        .become_each("{m*}.weight_packed", vec![("{m}.weight".into(), vec![Op::View(Dtype::U32)])])
        .become_each(
            "{m*}.weight_scale",
            vec![("{m}.scales".into(), vec![]), ("{m}.biases".into(), vec![Op::Multiply(-8.0)])],
        );
    let table = made.rewritten(&rules);
    assert_eq!(names(&table), ["a.q.biases", "a.q.scales", "a.q.weight"]);
    let scale = made.get("a.q.weight_scale");
    let eight = Array::scalar_like(-8.0, scale).unwrap();
    made.same(&table, "a.q.biases", &ops::multiply(scale, &eight).unwrap());
    assert_eq!(made.array(&table, "a.q.weight").to_vec::<u32>().unwrap(), [7, u32::MAX, 3, 4]);
}

#[test]
fn qwen3_next_norms_and_convolutions_are_brought_to_mlx() {
    let made = Made::new()
        .float("model.layers.0.linear_attn.conv1d.weight", &[6, 1, 4], Dtype::Bf16)
        .float("model.layers.1.linear_attn.conv1d.weight", &[6, 4, 1], Dtype::Bf16)
        .float("model.layers.0.input_layernorm.weight", &[6], Dtype::Bf16)
        .float("model.layers.0.linear_attn.norm.weight", &[6], Dtype::Bf16)
        .float("mtp.layers.0.input_layernorm.weight", &[6], Dtype::Bf16);
    let rules = Rules::new()
        .drop("{a*}mtp.{b*}")
        .map_if("{m*}conv1d.weight", &[Op::Swap(1, 2)], |at| at.shape.last() != Some(&1))
        .map(
            "{m*}.{n:input_layernorm|post_attention_layernorm|q_norm|k_norm}.weight",
            &[Op::Add(1.0)],
        );
    let table = made.rewritten(&rules);
    assert_eq!(table.tensors.len(), 4);
    let name = "model.layers.0.linear_attn.conv1d.weight";
    made.same(&table, name, &ops::swapaxes(made.get(name), 1, 2).unwrap());
    let name = "model.layers.1.linear_attn.conv1d.weight";
    made.same(&table, name, made.get(name));
    let name = "model.layers.0.input_layernorm.weight";
    let one = Array::scalar_like(1.0, made.get(name)).unwrap();
    made.same(&table, name, &ops::add(made.get(name), &one).unwrap());
    let name = "model.layers.0.linear_attn.norm.weight";
    made.same(&table, name, made.get(name));
}

#[test]
fn wrapped_text_models_lose_their_towers_and_prefixes() {
    // qwen3_5_moe: fused gate and up, one file's names in either of two layouts
    let made = Made::new()
        .float("model.visual.patch.weight", &[2], Dtype::F32)
        .float("model.language_model.layers.0.mlp.experts.gate_up_proj", &[2, 6, 4], Dtype::Bf16)
        .float("model.language_model.layers.0.mlp.experts.down_proj", &[2, 4, 3], Dtype::Bf16)
        .float("lm_head.weight", &[5, 4], Dtype::Bf16);
    let at = "language_model.model.layers.{l#}.mlp";
    let rules = Rules::new()
        .drop("{t:vision_tower|model.visual}{rest*}")
        .rename("model.language_model.{rest*}", "language_model.model.{rest}")
        .rename("{n:lm_head|model}.{rest*}", "language_model.{n}.{rest}")
        .split(
            &format!("{at}.experts.gate_up_proj"),
            -2,
            &[
                &format!("{at}.switch_mlp.gate_proj.weight"),
                &format!("{at}.switch_mlp.up_proj.weight"),
            ],
        )
        .rename(&format!("{at}.experts.down_proj"), &format!("{at}.switch_mlp.down_proj.weight"));
    let table = made.rewritten(&rules);
    let at = "language_model.model.layers.0.mlp.switch_mlp";
    assert_eq!(
        names(&table),
        [
            "language_model.lm_head.weight".to_owned(),
            format!("{at}.down_proj.weight"),
            format!("{at}.gate_proj.weight"),
            format!("{at}.up_proj.weight"),
        ]
    );
    let both = made.get("model.language_model.layers.0.mlp.experts.gate_up_proj");
    made.same(&table, &format!("{at}.up_proj.weight"), &ops::slice_axis(both, 1, 3, 6).unwrap());

    // kimi_k25: whatever is not the language model goes
    let table =
        made.rewritten(&Rules::new().keep(&["lm_head.{rest*}", "model.language_model.{rest*}"]));
    assert_eq!(table.tensors.len(), 3);
}

#[test]
fn lfm2_moe_is_renamed_before_it_is_stacked() {
    let mut made = Made::new().float("model.layers.1.conv.conv.weight", &[6, 1, 3], Dtype::Bf16);
    for e in 0..2 {
        for w in ["w1", "w2", "w3"] {
            let name = format!("model.layers.1.feed_forward.experts.{e}.{w}.weight");
            made = made.float(&name, &[3, 4], Dtype::Bf16);
        }
    }
    let mut rules = Rules::new().map_if(
        "{m*}conv.weight",
        &[Op::Swap(1, 2)],
        |at| matches!(at.shape, [_, b, .., c] if c > b),
    );
    for (old, new) in [("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")] {
        rules = rules.rename(&format!("{{m*}}.{old}.weight"), &format!("{{m}}.{new}.weight"));
    }
    let at = "model.layers.{l#}.feed_forward";
    let rules = rules.stack(
        &format!("{at}.experts.{{e#}}.{{p}}.weight"),
        "e",
        2,
        &format!("{at}.switch_mlp.{{p}}.weight"),
    );
    let table = made.rewritten(&rules);
    assert_eq!(table.tensors.len(), 4);
    let parts: Vec<_> = (0..2)
        .map(|e| made.get(&format!("model.layers.1.feed_forward.experts.{e}.w2.weight")))
        .collect();
    let name = "model.layers.1.feed_forward.switch_mlp.down_proj.weight";
    made.same(&table, name, &ops::stack(parts, 0).unwrap());
    assert_eq!(made.array(&table, "model.layers.1.conv.conv.weight").shape(), [6, 3, 1]);
}

#[test]
fn ministral_scales_multiply_and_prediction_layers_go() {
    let made = Made::new()
        .float("model.layers.0.q.weight", &[2, 4], Dtype::Bf16)
        .float("model.layers.0.q.weight_scale_inv", &[], Dtype::Bf16)
        .float("model.layers.0.q.activation_scale", &[], Dtype::Bf16)
        .float("model.layers.61.q.weight", &[2, 4], Dtype::Bf16);
    let rules = Rules::new()
        .drop("{m*}.activation_scale")
        .drop_if("model.layers.{l#}.{rest*}", |at| at.captures.number("l") >= 61)
        .scale("{m*}.weight_scale_inv", "{m}.weight");
    let table = made.rewritten(&rules);
    assert_eq!(names(&table), ["model.layers.0.q.weight"]);
    let expected = ops::multiply(
        made.get("model.layers.0.q.weight"),
        made.get("model.layers.0.q.weight_scale_inv"),
    );
    made.same(&table, "model.layers.0.q.weight", &expected.unwrap());
}

#[test]
fn steps_that_do_not_fit_name_file_and_tensor() {
    let made = Made::new().float("a", &[3, 4], Dtype::Bf16).float("b", &[3, 4], Dtype::Bf16);
    for (rules, words) in [
        (Rules::new().split("a", 0, &["x", "y"]), "does not divide into 2"),
        (Rules::new().deinterleave("a", -2, &["x", "y"]), "cannot be interleaved"),
        (Rules::new().map("a", &[Op::Swap(0, 2)]), "no axis 2"),
        (Rules::new().map("a", &[Op::Slice { axis: 1, start: 2, stop: 5 }]), "has no 2 to 5"),
        (Rules::new().map("a", &[Op::Reshape(vec![5, -1])]), "cannot become"),
        (Rules::new().map("a", &[Op::View(Dtype::U64), Op::Add(1.0)]), "expected a floating type"),
        (Rules::new().rename("{n:a|b}", "c"), "both become `c`"),
    ] {
        let message = made.refusal(&rules);
        assert!(message.contains("model.safetensors") && message.contains(words), "{message}");
    }
    // names may change places
    let table = made.rewritten(&Rules::new().rename("a", "t").rename("b", "a").rename("t", "b"));
    made.same(&table, "b", made.get("a"));
}
