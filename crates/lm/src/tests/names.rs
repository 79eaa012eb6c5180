//! Checkpoints with the names and shapes that transformers writes load as those that mlx-lm writes.

use std::fs;

use mlx::{Array, Dtype, ops};
use serde_json::Value;

use crate::models::{Model, load};
use crate::step::Step;
use crate::synth::Draft;

/// The configuration of a family's golden file, with random weights.
fn draft(family: &str) -> Draft {
    let path = format!("{}/src/models/golden/{family}.json", env!("CARGO_MANIFEST_DIR"));
    let golden: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    Draft::new(golden["config"].clone(), Dtype::F32, 3).unwrap()
}

fn logits(draft: &Draft) -> Vec<f32> {
    let dir = tempfile::tempdir().unwrap();
    draft.write(dir.path()).unwrap();
    let loaded = load(dir.path()).unwrap();
    let model: &dyn Model = loaded.model.as_ref();
    let tokens = Array::from_slice(&[5_u32, 3, 8, 60, 2], &[1, 5]).unwrap();
    let mut cache = model.make_cache();
    model.forward(&Step::new(&tokens).all_logits(), &mut [&mut cache]).unwrap().to_vec().unwrap()
}

/// Gives every tensor the name that `name` makes of its own.
fn rename(draft: &mut Draft, name: impl Fn(&str) -> String) {
    let weights = std::mem::take(&mut draft.weights);
    draft.weights = weights.into_iter().map(|(old, array)| (name(&old), array)).collect();
}

/// Takes the stacks below `switch_mlp` apart into `experts.N`; `names` are those of projections.
fn unstack(draft: &mut Draft, names: [(&str, &str); 3]) {
    for (name, stack) in draft.weights.clone() {
        let Some((prefix, rest)) = name.split_once("switch_mlp.") else { continue };
        let (projection, part) = rest.split_once('.').unwrap();
        let (_, projection) = names.iter().find(|(ours, _)| *ours == projection).unwrap();
        draft.weights.remove(&name);
        for e in 0..stack.dim(0) {
            let one = ops::squeeze(&ops::slice_axis(&stack, 0, e, e + 1).unwrap(), &[0]).unwrap();
            draft.weights.insert(format!("{prefix}experts.{e}.{projection}.{part}"), one);
        }
    }
}

fn unused(draft: &mut Draft, name: &str) {
    draft.weights.insert(name.to_owned(), ops::ones(&[16], Dtype::F32).unwrap());
}

fn assert_same(family: &str, change: impl Fn(&mut Draft)) {
    let expected = logits(&draft(family));
    let mut changed = draft(family);
    change(&mut changed);
    assert_ne!(
        changed.weights.keys().collect::<Vec<_>>(),
        draft(family).weights.keys().collect::<Vec<_>>()
    );
    assert_eq!(logits(&changed), expected, "{family}");
}

#[test]
fn single_experts_become_stacks() {
    let same = [("gate_proj", "gate_proj"), ("up_proj", "up_proj"), ("down_proj", "down_proj")];
    assert_same("qwen2_moe", |draft| unstack(draft, same));
    assert_same("qwen3_moe", |draft| unstack(draft, same));
    assert_same("mixtral", |draft| {
        unstack(draft, [("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")]);
    });
}

#[test]
fn frequencies_and_heads_that_nothing_uses_are_left_out() {
    for family in ["llama", "ministral3", "qwen2"] {
        assert_same(family, |draft| {
            unused(draft, "model.layers.0.self_attn.rotary_emb.inv_freq");
        });
    }
    // both are tied
    for family in ["qwen2", "qwen3"] {
        assert_same(family, |draft| unused(draft, "lm_head.weight"));
    }
}

#[test]
fn text_model_is_found_in_either_layout() {
    let vision = |draft: &mut Draft| {
        unused(draft, "vision_tower.patch_conv.weight");
        unused(draft, "multi_modal_projector.norm.weight");
    };
    // as transformers writes it now, as it did before, and without the images
    assert_same("mistral3", |draft| {
        rename(draft, |name| match name.strip_prefix("language_model.model.") {
            Some(rest) => format!("model.language_model.{rest}"),
            None => name.replace("language_model.lm_head", "lm_head"),
        });
        unused(draft, "model.vision_tower.patch_conv.weight");
        unused(draft, "model.multi_modal_projector.norm.weight");
    });
    assert_same("mistral3", vision);
    assert_same("mistral3", |draft| rename(draft, |name| name.replace("language_model.", "")));
}

#[test]
fn scaled_weights_are_multiplied_by_their_scales() {
    assert_same("ministral3", |draft| {
        let half = Array::scalar(0.5_f32).unwrap();
        let name = "model.layers.1.mlp.up_proj.weight";
        let weight = draft.weights[name].clone();
        // powers of two, so that nothing rounds
        draft.weights.insert(name.to_owned(), ops::divide(&weight, &half).unwrap());
        draft.weights.insert(format!("{name}_scale_inv"), half);
        unused(draft, "model.layers.1.mlp.up_proj.activation_scale");
    });
}
