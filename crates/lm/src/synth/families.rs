//! What can be imitated: one row per model with its configuration.

use serde_json::{Map, Value, json};

/// A model that [`super::synthesize`] can imitate.
pub(super) struct Family {
    /// As `--like` takes it.
    pub(super) name: &'static str,
    /// The `config.json` that its makers published, but for the quantisation.
    json: &'static str,
}

/// A row whose configuration is in `configs/`.
macro_rules! family {
    ($name:literal) => {
        Family { name: $name, json: include_str!(concat!("configs/", $name, ".json")) }
    };
}

/// Every model there is.
pub(super) const FAMILIES: &[Family] = &[
    family!("deepseek-v3.2"),
    family!("gemma4-26b-a4b"),
    family!("glm-4.7-flash"),
    family!("gpt-oss-20b"),
    family!("kimi-k2.5"),
    family!("lfm2-24b-a2b"),
    family!("lfm2-8b-a1b"),
    family!("minimax-m2"),
    family!("qwen3-30b-a3b"),
    family!("qwen3-moe-tiny"), // half a megabyte, for tests
    family!("qwen3-next-80b-a3b"),
    family!("qwen3.5-35b-a3b"),
];

const NUM_LAYERS: &str = "num_hidden_layers";
const LAYER_TYPES: &str = "layer_types";
/// Where some configurations keep the fields of the text model.
const TEXT_CONFIG: &str = "text_config";

impl Family {
    /// `config.json`, with another number of decoder layers, and of their types, if one is given.
    pub(super) fn config(&self, num_layers: Option<usize>) -> Map<String, Value> {
        let mut config: Map<String, Value> = serde_json::from_str(self.json).unwrap_or_default();
        if let Some(num_layers) = num_layers {
            let fields = match config.get(TEXT_CONFIG) {
                Some(_) => config.get_mut(TEXT_CONFIG).and_then(Value::as_object_mut),
                None => Some(&mut config),
            };
            if let Some(fields) = fields {
                fields.insert(NUM_LAYERS.to_owned(), json!(num_layers));
                if let Some(Value::Array(types)) = fields.get_mut(LAYER_TYPES) {
                    *types = types.iter().cycle().take(num_layers).cloned().collect();
                }
            }
        }
        config
    }

    /// Decoder layers of the original.
    pub(super) fn num_layers(&self) -> usize {
        let config = self.config(None);
        let text = config.get(TEXT_CONFIG).and_then(Value::as_object).unwrap_or(&config);
        text.get(NUM_LAYERS).and_then(Value::as_u64).unwrap_or(0) as usize
    }
}
