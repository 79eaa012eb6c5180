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
    family!("glm-4.7-flash"),
    family!("kimi-k2.5"),
    family!("qwen3-30b-a3b"),
    family!("qwen3-moe-tiny"), // half a megabyte, for tests
];

const NUM_LAYERS: &str = "num_hidden_layers";
/// Where some configurations keep the fields of the text model.
const TEXT_CONFIG: &str = "text_config";

impl Family {
    /// `config.json`, with another number of decoder layers if one is given.
    pub(super) fn config(&self, num_layers: Option<usize>) -> Map<String, Value> {
        let mut config: Map<String, Value> = serde_json::from_str(self.json).unwrap_or_default();
        if let Some(num_layers) = num_layers {
            let nested = config.get_mut(TEXT_CONFIG).and_then(Value::as_object_mut);
            match nested {
                Some(text) => text.insert(NUM_LAYERS.to_owned(), json!(num_layers)),
                None => config.insert(NUM_LAYERS.to_owned(), json!(num_layers)),
            };
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
