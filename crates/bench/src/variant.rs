//! Variants: ways to run one model, as users write them.

use std::time::Duration;

use mlx::primitives::Precision;
use zmlx_capsule::{EngineKind, Variant};
use zmlx_lm::{CacheOptions, KvQuantization, PatchOptions, Patterns, patterns};

use crate::{Error, Result};

/// A variant to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct VariantSpec {
    /// How reports call it.
    pub name: String,
    /// As it was written: what makes the same variant again.
    pub settings: String,
    /// What runs it.
    pub engine: EngineKind,
    /// Whether other tokens than the reference's are expected of it.
    pub lossy: bool,
    /// Which patterns are tried.
    pub patterns: Patterns,
    /// Whether these are yet to be chosen by measurement: [`settle`](crate::smart::settle).
    pub smart: bool,
    /// In which precision.
    pub precision: Precision,
    /// How keys and values are packed.
    pub kv: Option<KvQuantization>,
    /// Threads of the CPU primitives, where they are others than the process's.
    pub threads: Option<i32>,
    /// Most tokens that are read and that are generated: for what is too slow to do all of it.
    pub cap: Option<usize>,
    /// A wait after each token: a variant that is known to be slower, to see whether that is noticed.
    pub delay: Duration,
}

impl VariantSpec {
    /// `NAME=WORD,WORD,...`, or the words alone, which then are the name.
    ///
    /// # Errors
    /// `Argument` for a word that is none.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, settings) = match text.split_once('=') {
            // a setting of its own has an equals sign too
            Some((name, settings)) if !name.contains(',') && !SETTINGS.contains(&name) => {
                (name, settings)
            }
            _ => (text, text),
        };
        let mut spec = Self {
            name: name.trim().to_owned(),
            settings: settings.to_owned(),
            engine: EngineKind::Zmlx,
            lossy: false,
            patterns: Patterns::Auto,
            smart: false,
            precision: Precision::Exact,
            kv: None,
            threads: None,
            cap: None,
            delay: Duration::ZERO,
        };
        if spec.name.is_empty() {
            return Err(Error::argument(
                "variant",
                text,
                "expected NAME=WORD,..., such as mine=auto,fast",
            ));
        }
        let mut named = Vec::new();
        let (mut group_size, mut start) = (None, None);
        for word in settings.split(',').map(str::trim) {
            match word {
                "auto" => spec.patterns = Patterns::Auto,
                "smart" => spec.smart = true,
                "off" => spec.patterns = Patterns::Off,
                "exact" => spec.precision = Precision::Exact,
                "fast" => spec.precision = Precision::Fast,
                "lossy" => spec.lossy = true,
                "mlx-lm" => spec.engine = EngineKind::MlxLm,
                "llama-bench" => spec.engine = EngineKind::LlamaBench,
                _ if patterns::names().contains(&word) => named.push(word.to_owned()),
                _ => match word.split_once('=') {
                    Some(("kv-bits", bits)) => {
                        spec.kv = Some(KvQuantization::new(number(word, bits)?))
                    }
                    Some(("kv-group-size", size)) => group_size = Some(number(word, size)?),
                    Some(("quantized-kv-start", at)) => start = Some(number(word, at)?),
                    Some(("threads", count)) => spec.threads = Some(number(word, count)?),
                    Some(("cap", count)) => spec.cap = Some(number(word, count)?),
                    Some(("delay-us", us)) => spec.delay = Duration::from_micros(number(word, us)?),
                    _ => return Err(unknown(word)),
                },
            }
        }
        if spec.smart && (!named.is_empty() || spec.patterns == Patterns::Off) {
            let reason = "smart chooses the patterns itself: leave out their names, and off";
            return Err(Error::argument("variant", text, reason));
        }
        if !named.is_empty() {
            spec.patterns = Patterns::Names(named);
        }
        if let Some((program, words)) = foreign(spec.engine) {
            let strange =
                |word: &&str| !words.contains(&word.split_once('=').map_or(*word, |w| w.0));
            if let Some(word) = settings.split(',').map(str::trim).find(strange) {
                let reason = format!(
                    "is nothing that {program} is told; it takes {}",
                    words[1..].join(", ")
                );
                return Err(Error::argument("variant", word, reason));
            }
        }
        match &mut spec.kv {
            Some(kv) => {
                kv.group_size = group_size.unwrap_or(kv.group_size);
                kv.start = start.unwrap_or(kv.start);
            }
            None if group_size.is_some() || start.is_some() => {
                let reason = "kv-group-size and quantized-kv-start say nothing without kv-bits";
                return Err(Error::argument("variant", text, reason));
            }
            None => {}
        }
        if spec.cap.is_some_and(|cap| cap < 2) {
            return Err(Error::argument("variant", text, "expected a cap of 2 tokens or more"));
        }
        Ok(spec)
    }

    /// The same with the patterns `off`, for a reference.
    pub fn stock() -> Self {
        Self {
            name: "stock".to_owned(),
            settings: "off".to_owned(),
            engine: EngineKind::Zmlx,
            lossy: false,
            patterns: Patterns::Off,
            smart: false,
            precision: Precision::Exact,
            kv: None,
            threads: None,
            cap: None,
            delay: Duration::ZERO,
        }
    }

    /// The same with the patterns that were chosen; none is stock.
    pub fn chosen(&self, patterns: &[String]) -> Self {
        let names = if patterns.is_empty() { "off".to_owned() } else { patterns.join(",") };
        let words = self.settings.split(',').map(|word| match word.trim() {
            "smart" => names.as_str(),
            word => word,
        });
        let settings = words.filter(|word| *word != "auto").collect::<Vec<_>>().join(",");
        let patterns = match patterns {
            [] => Patterns::Off,
            names => Patterns::Names(names.to_vec()),
        };
        Self { settings, patterns, smart: false, ..self.clone() }
    }

    /// What is fused, for this program.
    pub fn patch_options(&self) -> PatchOptions {
        PatchOptions {
            patterns: self.patterns.clone(),
            precision: self.precision,
            ..PatchOptions::default()
        }
    }

    /// What is remembered, and how.
    pub fn cache_options(&self) -> CacheOptions {
        CacheOptions { quantized: self.kv, ..CacheOptions::default() }
    }

    /// Tokens of `n` that are done.
    pub fn capped(&self, n: usize) -> usize {
        self.cap.map_or(n, |cap| n.min(cap))
    }

    /// As a capsule has it.
    pub fn describe(&self) -> Variant {
        Variant {
            name: self.name.clone(),
            engine: self.engine,
            engine_version: None,
            settings: self.settings.clone(),
            lossy: self.lossy,
            patterns: Vec::new(),
            fallbacks: Vec::new(),
        }
    }

    /// What a capsule has, as it was.
    ///
    /// # Errors
    /// `Argument` where this zmlx does not know a word of it.
    pub fn of(variant: &Variant) -> Result<Self> {
        Self::parse(&format!("{}={}", variant.name, variant.settings))
    }
}

const SETTINGS: [&str; 6] =
    ["kv-bits", "kv-group-size", "quantized-kv-start", "threads", "cap", "delay-us"];

/// Another program's name, and the words that it is told or that are not for it.
fn foreign(engine: EngineKind) -> Option<(&'static str, &'static [&'static str])> {
    match engine {
        EngineKind::MlxLm => Some((
            "mlx-lm",
            &["mlx-lm", "lossy", "cap", "kv-bits", "kv-group-size", "quantized-kv-start"],
        )),
        EngineKind::LlamaBench => {
            Some(("llama-bench", &["llama-bench", "lossy", "cap", "threads"]))
        }
        EngineKind::Zmlx | EngineKind::Call => None,
    }
}

fn number<T: std::str::FromStr>(word: &str, text: &str) -> Result<T> {
    text.parse().map_err(|_| Error::argument("variant", word, "expected a whole number"))
}

fn unknown(word: &str) -> Error {
    let settings = SETTINGS.map(|s| format!("{s}=N")).join(", ");
    Error::argument(
        "variant",
        word,
        format!(
            "is no setting; expected auto, smart, off, exact, fast, lossy, mlx-lm, llama-bench, {settings}, or a pattern: {}",
            patterns::names().join(", ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_make_a_variant() {
        let spec = VariantSpec::parse(
            "kv4=moe_mlp,rms_norm,fast,kv-bits=4,quantized-kv-start=0,threads=1,cap=8,delay-us=50,lossy",
        )
        .unwrap();
        assert_eq!(spec.name, "kv4");
        let names = ["moe_mlp", "rms_norm"].map(str::to_owned).to_vec();
        assert_eq!(spec.patterns, Patterns::Names(names));
        assert_eq!(spec.precision, Precision::Fast);
        assert_eq!(spec.kv, Some(KvQuantization { bits: 4, group_size: 64, start: 0 }));
        assert_eq!((spec.threads, spec.capped(100), spec.lossy), (Some(1), 8, true));
        assert_eq!(spec.delay, Duration::from_micros(50));
        assert_eq!(VariantSpec::of(&spec.describe()).unwrap(), spec, "a capsule can repeat it");
        let plain = VariantSpec::parse("auto,kv-bits=8").unwrap();
        assert_eq!(
            (plain.name.as_str(), plain.settings.as_str()),
            ("auto,kv-bits=8", "auto,kv-bits=8")
        );
        assert_eq!(VariantSpec::parse("kv-bits=8").unwrap().name, "kv-bits=8");
        assert_eq!(VariantSpec::stock(), VariantSpec::parse("stock=off").unwrap());
    }

    #[test]
    fn a_choice_takes_the_place_of_the_word_for_it() {
        let spec = VariantSpec::parse("best=smart,fast,kv-bits=8").unwrap();
        assert!(spec.smart && spec.patterns == Patterns::Auto);
        let chosen = spec.chosen(&["moe_mlp", "rms_norm"].map(str::to_owned));
        assert_eq!(chosen.settings, "moe_mlp,rms_norm,fast,kv-bits=8");
        assert_eq!(VariantSpec::of(&chosen.describe()).unwrap(), chosen, "a capsule can repeat it");
        let none = VariantSpec::parse("smart,auto").unwrap().chosen(&[]);
        assert_eq!((none.settings.as_str(), none.patterns), ("off", Patterns::Off));
    }

    #[test]
    fn words_that_are_none_say_what_would_be() {
        for (text, reason) in [
            ("a=auto,quick", "`quick`: is no setting; expected auto, smart, off"),
            ("a=smart,moe_mlp", "smart chooses the patterns itself"),
            ("a=smart,off", "smart chooses the patterns itself"),
            (
                "a=mlx-lm,fast",
                "`fast`: is nothing that mlx-lm is told; it takes lossy, cap, kv-bits",
            ),
            ("a=kv-bits=8,llama-bench", "`kv-bits=8`: is nothing that llama-bench is told"),
            ("a=", "is no setting"),
            ("=auto", "expected NAME=WORD"),
            ("a=kv-bits=four", "whole number"),
            ("a=kv-group-size=32", "without kv-bits"),
            ("a=cap=1", "a cap of 2"),
        ] {
            let error = VariantSpec::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
