//! Which module is quantised how.

use mlx::quantization::{Mode, Quantization};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::models::family::Conversion;
use crate::quantization::{KNOWN, is_valid};

/// What a family's routers get whatever the rest has.
const PRECISE: Quantization = Quantization { group_size: 64, bits: 8, mode: Mode::Affine };

/// How a model is to be quantised.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// How values are stored.
    pub mode: Mode,
    /// Bits per weight; `None` takes the mode's own.
    pub bits: Option<i32>,
    /// Weights per scale; `None` takes the mode's own.
    pub group_size: Option<i32>,
    /// Gives some modules more bits than others, in place of what the family keeps precise.
    pub mixed: Option<Mixed>,
    /// Exceptions, of which the last that matches a module's path counts.
    pub overrides: Vec<Override>,
}

impl Recipe {
    /// What a module gets that is no exception.
    pub fn default(&self) -> Quantization {
        Quantization {
            mode: self.mode,
            bits: self.bits.unwrap_or(self.mode.default_bits()),
            group_size: self.group_size.unwrap_or(self.mode.default_group_size()),
        }
    }
}

/// What modules get whose paths match.
#[derive(Debug, Clone)]
pub struct Override {
    /// Matched against the whole path, such as `model.layers.0.mlp.gate`.
    pub modules: glob::Pattern,
    /// `None` leaves them dense.
    pub setting: Option<Quantization>,
}

/// A recipe of two numbers of bits: more for the first and last layers, for every third one between them, and for the
/// output projection.
///
/// # Source
/// mlx-lm `convert.py` (`mixed_quant_predicate_builder`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mixed {
    /// Its name.
    pub name: &'static str,
    low_bits: i32,
    high_bits: i32,
}

impl Mixed {
    /// Every recipe.
    pub const ALL: &[Self] = &[
        Self { name: "mixed_2_6", low_bits: 2, high_bits: 6 },
        Self { name: "mixed_3_4", low_bits: 3, high_bits: 4 },
        Self { name: "mixed_3_6", low_bits: 3, high_bits: 6 },
        Self { name: "mixed_4_6", low_bits: 4, high_bits: 6 },
    ];

    /// The recipe of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mixed| mixed.name == name)
    }
}

/// A module's setting, and what `config.json` has to say about it beside the default.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Choice {
    pub(super) setting: Option<Quantization>,
    pub(super) entry: Option<Value>,
}

/// A recipe applied to one model.
pub(super) struct Chooser<'a> {
    recipe: &'a Recipe,
    pub(super) default: Quantization,
    precise: &'static [&'static str],
    /// Where the number of a layer stands in a path, and how many layers there are.
    layers: (usize, usize),
}

impl<'a> Chooser<'a> {
    /// - `modules`: the paths of all that may be quantised
    ///
    /// # Errors
    /// `Argument` for a setting that MLX lacks or that the recipe does not go with.
    pub(super) fn new(recipe: &'a Recipe, family: &Conversion, modules: &[&str]) -> Result<Self> {
        let default = recipe.default();
        for setting in recipe.overrides.iter().filter_map(|o| o.setting).chain([default]) {
            if !is_valid(setting) {
                return Err(Error::argument("quantization", setting, KNOWN));
            }
        }
        if let Some(unused) =
            recipe.overrides.iter().find(|o| !modules.iter().any(|m| o.modules.matches(m)))
        {
            let reason = format!("no module matches; there are {}, ..", shown(modules));
            return Err(Error::argument("override", &unused.modules, reason));
        }
        let layers = match recipe.mixed {
            Some(mixed) => layers(mixed, recipe.mode, modules)?,
            None => (0, 0),
        };
        Ok(Self { recipe, default, precise: family.precise, layers })
    }

    /// - `columns`: the dense width
    ///
    /// # Errors
    /// `Argument` when the width does not divide into the groups of an override.
    pub(super) fn choose(&self, module: &str, columns: i32) -> Result<Choice> {
        let fits = |setting: Quantization| columns % setting.group_size == 0;
        let own = self.recipe.overrides.iter().rev().find(|o| o.modules.matches(module));
        if let Some(own) = own {
            let Some(setting) = own.setting else {
                return Ok(Choice { setting: None, entry: Some(json!(false)) });
            };
            if !fits(setting) {
                let reason = format!("`{module}` has {columns} columns, which do not divide so");
                return Err(Error::argument("override", setting, reason));
            }
            return Ok(Choice { setting: Some(setting), entry: Some(object(setting)) });
        }
        if !fits(self.default) {
            return Ok(Choice { setting: None, entry: None });
        }
        if let Some(mixed) = self.recipe.mixed {
            let bits = self.mixed_bits(mixed, module);
            let setting = Quantization { bits, ..self.default };
            // mlx-lm writes what it was asked for: null where that is the default
            let group_size = self.recipe.group_size;
            let entry = json!({ "group_size": group_size, "bits": bits, "mode": "affine" });
            return Ok(Choice { setting: Some(setting), entry: Some(entry) });
        }
        if self.precise.iter().any(|end| module.ends_with(end)) {
            if !fits(PRECISE) {
                return Ok(Choice { setting: None, entry: Some(json!(false)) });
            }
            let Quantization { group_size, bits, .. } = PRECISE;
            let entry = json!({ "group_size": group_size, "bits": bits });
            return Ok(Choice { setting: Some(PRECISE), entry: Some(entry) });
        }
        Ok(Choice { setting: Some(self.default), entry: None })
    }

    fn mixed_bits(&self, mixed: Mixed, module: &str) -> i32 {
        let (place, num_layers) = self.layers;
        let index = module.split('.').nth(place).and_then(|part| part.parse().ok()).unwrap_or(0);
        let eighth = num_layers / 8;
        let is_chosen = index < eighth || index >= 7 * num_layers / 8 || (index - eighth) % 3 == 2;
        let is_sensitive = ["v_proj", "v_a_proj", "v_b_proj", "down_proj"]
            .iter()
            .any(|name| module.contains(name));
        if module.contains("lm_head") || is_sensitive && is_chosen {
            mixed.high_bits
        } else {
            mixed.low_bits
        }
    }
}

/// A setting as an object of `config.json`.
pub(super) fn object(setting: Quantization) -> Value {
    let Quantization { group_size, bits, mode } = setting;
    json!({ "group_size": group_size, "bits": bits, "mode": mode.name() })
}

/// Where the number of a layer stands in a path, and how many layers there are.
fn layers(mixed: Mixed, mode: Mode, modules: &[&str]) -> Result<(usize, usize)> {
    if mode != Mode::Affine {
        return Err(Error::argument("recipe", mixed.name, format!("is affine, not {mode}")));
    }
    let Some(down) = modules.iter().find(|module| module.contains("down_proj")) else {
        let reason = "gives more bits to down_proj, which this model does not have";
        return Err(Error::argument("recipe", mixed.name, reason));
    };
    let number = |part: &str| part.parse::<usize>().ok();
    let place = down.split('.').position(|part| number(part).is_some()).unwrap_or(usize::MAX);
    let numbers = modules.iter().filter_map(|module| number(module.split('.').nth(place)?));
    Ok((place, numbers.max().map_or(0, |last| last + 1)))
}

fn shown(modules: &[&str]) -> String {
    const SHOWN: usize = 3;
    modules.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ")
}
