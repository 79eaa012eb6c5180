//! What a model remembers of the tokens seen so far, layer by layer.
//!
//! A cache is a value: its clone is a snapshot that shares the buffers until one of both is written to.

mod buffer;
mod file;
mod fixed;
mod kv;
mod quantized;
mod recorded;
mod state;
mod window;

use mlx::fast::Mask;
use mlx::quantization::QuantizedWeight;
use mlx::{Array, Dtype, ops};

pub use self::buffer::GROW_STEP;
pub(crate) use self::buffer::on_cuda;
pub use self::file::{SavedCache, save};
pub use self::fixed::{Clock, FixedKvCache};
pub use self::kv::KvCache;
pub use self::quantized::{KvQuantization, QuantizedKvCache, quantized_attention};
pub use self::recorded::RecordedKvCache;
pub use self::state::StateCache;
pub use self::window::WindowCache;
use crate::error::{Error, Result};

/// Where the next token stands in the sequence.
#[derive(Debug, Clone)]
pub enum Position {
    /// Known while the graph is built.
    Static(i32),
    /// A scalar i32 read when the graph runs, so that one graph serves every position.
    Dynamic(Array),
}

/// Which keys the queries of a step see.
#[derive(Debug, Clone)]
pub enum AttentionMask {
    /// All of them.
    None,
    /// Those up to their own.
    Causal,
    /// Those up to their own, the last ones only.
    Window {
        /// How many, their own included.
        size: i32,
        /// The same as [`AttentionMask::Array`] has it.
        array: Array,
    },
    /// Those where it is true, `[L, T]`.
    Array(Array),
}

impl AttentionMask {
    /// As MLX takes it.
    pub fn as_mask(&self) -> Mask<'_> {
        match self {
            Self::None => Mask::None,
            Self::Causal => Mask::Causal,
            Self::Array(array) | Self::Window { array, .. } => Mask::Array(array),
        }
    }

    /// Whether queries see only keys up to their own, and how many of the last; `None` where only an array says it.
    pub fn as_causal(&self) -> Option<(bool, Option<i32>)> {
        match self {
            Self::None => Some((false, None)),
            Self::Causal => Some((true, None)),
            Self::Window { size, .. } => Some((true, Some(*size))),
            Self::Array(_) => None,
        }
    }

    /// As data, `[L, T]` bool, for `l` queries and `t` keys; `None` where all keys are seen.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn to_array(&self, l: i32, t: i32) -> Result<Option<Array>> {
        Ok(match self {
            Self::None => None,
            Self::Causal => Some(causal(l, t - l)?),
            Self::Array(array) | Self::Window { array, .. } => Some(array.clone()),
        })
    }
}

/// `scores` where `mask` is true, the least finite number of their type elsewhere.
///
/// # Errors
/// `Mlx`.
pub fn masked(scores: &Array, mask: &Array) -> Result<Array> {
    let lowest = match scores.dtype() {
        Dtype::F16 => half::f16::MIN.to_f32(),
        Dtype::Bf16 => half::bf16::MIN.to_f32(),
        _ => f32::MIN,
    };
    Ok(ops::select(mask, scores, &Array::scalar_like(lowest, scores)?)?)
}

/// Query `i` of `l` after `offset` tokens sees key `j` when `j <= offset + i`: `[l, offset + l]` bool.
fn causal(l: i32, offset: i32) -> Result<Array> {
    let keys = ops::arange(0.0, f64::from(offset + l), 1.0, Dtype::I32)?;
    let queries = ops::arange(f64::from(offset), f64::from(offset + l), 1.0, Dtype::I32)?;
    Ok(ops::greater_equal(&ops::expand_dims(&queries, &[1])?, &keys)?)
}

/// The same with `offset + i < j + window` besides.
fn windowed(l: i32, offset: i32, window: i32) -> Result<AttentionMask> {
    let keys = ops::arange(0.0, f64::from(offset + l), 1.0, Dtype::I32)?;
    let queries = ops::arange(f64::from(offset), f64::from(offset + l), 1.0, Dtype::I32)?;
    let queries = ops::expand_dims(&queries, &[1])?;
    let near = ops::less(&queries, &ops::add(&keys, &Array::scalar(window)?)?)?;
    let array = ops::logical_and(&causal(l, offset)?, &near)?;
    Ok(AttentionMask::Window { size: window, array })
}

/// Keys and values that attention reads, `[B, H, T, D]`.
#[derive(Debug, Clone)]
pub enum KeysValues {
    /// As they are.
    Dense(Array, Array),
    /// Packed.
    Quantized(QuantizedWeight, QuantizedWeight),
}

/// What one layer remembers of a sequence.
#[derive(Debug, Clone)]
pub enum LayerCache {
    /// Keys and values of every token.
    Kv(KvCache),
    /// Keys and values of the last tokens.
    Window(WindowCache),
    /// Keys and values of every token, packed.
    Quantized(QuantizedKvCache),
    /// Keys and values of a fixed number of tokens, whose position is data.
    Fixed(FixedKvCache),
    /// Keys and values of every token, while a step is recorded.
    Recorded(RecordedKvCache),
    /// The state of a recurrence.
    State(StateCache),
    /// Several of them.
    List(Vec<LayerCache>),
}

impl LayerCache {
    /// Tokens seen.
    pub fn len(&self) -> i32 {
        match self {
            Self::Kv(kv) => kv.len(),
            Self::Window(window) => window.len(),
            Self::Quantized(kv) => kv.len(),
            Self::Fixed(kv) => kv.len(),
            Self::Recorded(kv) => kv.len(),
            Self::State(state) => state.len(),
            Self::List(list) => list.iter().map(Self::len).max().unwrap_or(0),
        }
    }

    /// Whether no token was seen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The keys and values, where it is the kind that grows.
    pub(crate) fn as_kv_mut(&mut self) -> Option<&mut KvCache> {
        if let Self::Kv(kv) = self { Some(kv) } else { None }
    }

    /// Every array, for evaluation; none of those that a recorded step writes.
    pub fn arrays(&self) -> Box<dyn Iterator<Item = &Array> + '_> {
        fn pairs(pair: &Option<(Array, Array)>) -> impl Iterator<Item = &Array> {
            pair.iter().flat_map(|(k, v)| [k, v])
        }
        match self {
            Self::Kv(KvCache { buffers, .. }) | Self::Window(WindowCache { buffers, .. }) => {
                Box::new(pairs(buffers))
            }
            Self::Quantized(kv) => Box::new(kv.arrays()),
            Self::Fixed(kv) => Box::new(pairs(&kv.buffers).chain([kv.clock().position()])),
            Self::Recorded(_) => Box::new(std::iter::empty()),
            Self::State(state) => Box::new(state.arrays.iter().flatten()),
            Self::List(list) => Box::new(list.iter().flat_map(Self::arrays)),
        }
    }

    /// The arrays whose first axis is the rows.
    fn rows_mut(&mut self) -> Box<dyn Iterator<Item = &mut Array> + '_> {
        let buffers = match self {
            Self::Kv(kv) => &mut kv.buffers,
            Self::Window(window) => &mut window.buffers,
            Self::Fixed(kv) => &mut kv.buffers,
            Self::Quantized(kv) => return Box::new(kv.arrays_mut()),
            Self::Recorded(_) => return Box::new(std::iter::empty()),
            Self::State(state) => return Box::new(state.arrays.iter_mut().flatten()),
            Self::List(list) => return Box::new(list.iter_mut().flat_map(Self::rows_mut)),
        };
        Box::new(buffers.iter_mut().flat_map(|(k, v)| [k, v]))
    }

    /// Where the next token goes.
    ///
    /// # Errors
    /// `Mlx` for a step that is recorded already.
    pub fn position(&self) -> Result<Position> {
        Ok(match self {
            Self::Fixed(kv) => Position::Dynamic(kv.clock().position().clone()),
            Self::Recorded(kv) => kv.position()?,
            other => Position::Static(other.len()),
        })
    }

    /// Which keys the next `l` tokens see, those of tokens held before them.
    ///
    /// # Errors
    /// `Mlx`.
    /// # Source
    /// mlx-lm `base.py` (`create_attention_mask`), `cache.py` (`make_mask`).
    pub fn mask(&self, l: i32, window: Option<i32>) -> Result<AttentionMask> {
        match (self, window) {
            (Self::Window(ring), window) => ring.mask(l, window),
            (Self::Fixed(kv), window) => Ok(AttentionMask::Array(kv.mask(l, window)?)),
            (_, Some(window)) if self.len() + l > window => windowed(l, self.len(), window),
            _ if l > 1 => Ok(AttentionMask::Causal),
            _ => Ok(AttentionMask::None),
        }
    }

    /// Appends `keys` and `values`, `[B, H, L, D]`, and returns those that the new tokens may see.
    ///
    /// # Errors
    /// `Argument` where there is no place for keys and values; `Mlx`.
    pub fn update(&mut self, keys: &Array, values: &Array) -> Result<KeysValues> {
        let (k, v) = match self {
            Self::Kv(kv) => kv.update(keys, values)?,
            Self::Window(window) => window.update(keys, values)?,
            Self::Fixed(kv) => kv.update(keys, values)?,
            Self::Quantized(kv) => {
                let (k, v) = kv.update(keys, values)?;
                return Ok(KeysValues::Quantized(k, v));
            }
            Self::Recorded(_) | Self::State(_) | Self::List(_) => {
                let reason = "attention needs one of keys and values";
                return Err(Error::argument("layer cache", self.kind(), reason));
            }
        };
        Ok(KeysValues::Dense(k, v))
    }

    /// The recurrent state, where it is one.
    pub fn as_state(&mut self) -> Option<&mut StateCache> {
        if let Self::State(state) = self { Some(state) } else { None }
    }

    /// The caches that it consists of, where it is a list.
    pub fn as_list(&mut self) -> Option<&mut [LayerCache]> {
        if let Self::List(list) = self { Some(list) } else { None }
    }

    /// Whether tokens can be taken back.
    pub fn can_trim(&self) -> bool {
        match self {
            Self::Kv(_) | Self::Quantized(_) | Self::Fixed(_) => true,
            Self::Window(window) => window.can_trim(),
            Self::Recorded(_) | Self::State(_) => false,
            Self::List(list) => list.iter().all(Self::can_trim),
        }
    }

    fn trim(&mut self, n: i32) -> i32 {
        match self {
            Self::Kv(kv) => kv.trim(n),
            Self::Window(window) => window.trim(n),
            Self::Quantized(kv) => kv.trim(n),
            Self::Fixed(kv) => kv.trim(n).unwrap_or(0),
            Self::Recorded(_) | Self::State(_) => 0,
            Self::List(list) => list.iter_mut().map(|part| part.trim(n)).min().unwrap_or(0),
        }
    }

    fn clear(&mut self) {
        match self {
            Self::Kv(kv) => kv.clear(),
            Self::Window(window) => window.clear(),
            Self::Quantized(kv) => kv.clear(),
            Self::Fixed(kv) => {
                let _ = kv.trim(kv.len());
            }
            // it has no tokens of its own to forget
            Self::Recorded(_) => {}
            Self::State(state) => state.clear(),
            Self::List(list) => list.iter_mut().for_each(Self::clear),
        }
    }

    /// Whether all keys and values can be packed.
    fn can_quantize(&self) -> bool {
        match self {
            Self::Kv(kv) => !kv.is_latent(),
            Self::List(list) => list.iter().all(Self::can_quantize),
            _ => true,
        }
    }

    /// Packs a growing cache that holds at least `quantization.start` tokens. As mlx-lm, it leaves those in a list.
    fn quantize(&mut self, quantization: KvQuantization) -> Result<()> {
        if let Self::Kv(kv) = self
            && kv.len() >= quantization.start
            && !kv.is_latent()
        {
            *self = Self::Quantized(kv.to_quantized(quantization)?);
        }
        Ok(())
    }

    /// Drops room that holds no token.
    fn compact(&mut self) -> Result<()> {
        match self {
            Self::Kv(kv) => {
                if let Some((k, v)) = &kv.buffers {
                    kv.buffers = Some((buffer::first(k, kv.len)?, buffer::first(v, kv.len)?));
                }
            }
            Self::Window(window) => window.compact()?,
            Self::Quantized(kv) => kv.compact()?,
            Self::Fixed(_) | Self::Recorded(_) | Self::State(_) => {}
            Self::List(list) => list.iter_mut().try_for_each(Self::compact)?,
        }
        Ok(())
    }

    /// Whether rows of both can stand in one cache.
    fn matches(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Window(a), Self::Window(b)) => a.matches(b),
            (Self::Quantized(a), Self::Quantized(b)) => {
                a.len() == b.len() && a.quantization() == b.quantization()
            }
            (Self::Fixed(a), Self::Fixed(b)) => a.len() == b.len() && a.capacity() == b.capacity(),
            (Self::List(a), Self::List(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.matches(b))
            }
            (Self::Kv(_), Self::Kv(_)) | (Self::State(_), Self::State(_)) => {
                self.len() == other.len()
            }
            _ => false,
        }
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Kv(_) => "growing",
            Self::Window(_) => "a window",
            Self::Quantized(_) => "quantized",
            Self::Fixed(_) => "fixed",
            Self::Recorded(_) => "recorded",
            Self::State(_) => "a recurrent state",
            Self::List(_) => "a list",
        }
    }
}

/// Limits of a sequence's cache. The default lets it grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheOptions {
    /// Most tokens that growing layers hold: the first [`KEEP`] and the newest. Older ones are overwritten.
    pub max_kv_size: Option<i32>,
    /// Packs growing layers.
    pub quantized: Option<KvQuantization>,
}

/// Tokens at the start of a sequence that a cache of limited size keeps, mlx-lm's value.
pub const KEEP: i32 = 4;

impl CacheOptions {
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(size) = self.max_kv_size.filter(|size| *size <= KEEP) {
            let reason = format!("the first {KEEP} tokens stay, expected more than that");
            return Err(Error::argument("max_kv_size", size, reason));
        }
        if let (Some(size), Some(_)) = (self.max_kv_size, self.quantized) {
            let reason = "a cache of limited size cannot be quantized";
            return Err(Error::argument("max_kv_size", size, reason));
        }
        self.quantized.as_ref().map_or(Ok(()), KvQuantization::check)
    }

    /// Whether what a model remembers can be kept so.
    pub(crate) fn check_for(&self, cache: &Cache) -> Result<()> {
        match self.quantized {
            Some(KvQuantization { bits, .. }) if !cache.can_quantize() => {
                let reason = "attention over latents reads them as they are; leave it out";
                Err(Error::argument("kv_bits", bits, reason))
            }
            _ => Ok(()),
        }
    }

    /// An empty cache within these limits, from the model's own.
    pub(crate) fn limit(&self, mut cache: Cache) -> Cache {
        if let Some(max_size) = self.max_kv_size {
            for layer in &mut cache.layers {
                if let LayerCache::Kv(_) = layer {
                    *layer = LayerCache::Window(WindowCache::new(max_size, KEEP));
                }
            }
        }
        cache
    }
}

/// What a model remembers of one sequence, or of several that are equally long.
#[derive(Debug, Clone)]
pub struct Cache {
    /// One per layer.
    pub layers: Vec<LayerCache>,
}

impl Cache {
    /// Empty growing caches for `num_layers`.
    pub fn new(num_layers: usize) -> Self {
        Self { layers: vec![LayerCache::Kv(KvCache::default()); num_layers] }
    }

    /// Tokens seen.
    pub fn len(&self) -> i32 {
        self.layers.first().map_or(0, LayerCache::len)
    }

    /// Whether no token was seen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every array, for evaluation.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flat_map(LayerCache::arrays)
    }

    /// Bytes of its buffers, room for further tokens included.
    pub fn bytes(&self) -> usize {
        self.arrays().map(Array::nbytes).sum()
    }

    /// Whether tokens can be taken back.
    pub fn can_trim(&self) -> bool {
        self.layers.iter().all(LayerCache::can_trim)
    }

    /// Forgets the last `n` tokens, or all where there are fewer, and says how many: none where a layer cannot.
    pub fn trim(&mut self, n: i32) -> i32 {
        if !self.can_trim() {
            return 0;
        }
        self.layers.iter_mut().map(|layer| layer.trim(n)).min().unwrap_or(0)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.layers.iter_mut().for_each(LayerCache::clear);
    }

    /// Whether all keys and values can be packed.
    pub fn can_quantize(&self) -> bool {
        self.layers.iter().all(LayerCache::can_quantize)
    }

    /// Packs growing layers that hold at least `quantization.start` tokens, those of latents apart.
    ///
    /// # Errors
    /// `Mlx`, when the width of a head is not a multiple of the group size.
    /// # Source
    /// mlx-lm `generate.py` (`maybe_quantize_kv_cache`).
    pub fn quantize(&mut self, quantization: KvQuantization) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| layer.quantize(quantization))
    }

    /// The same tokens in growing layers' place in buffers for `capacity` tokens, with the position as data: the graph of
    /// every later step of as many tokens is the same. Other layers stay as they are.
    ///
    /// # Errors
    /// `Argument` when more tokens are held; `Mlx`.
    pub fn fixed(&self, capacity: i32) -> Result<Self> {
        let len = self.len();
        if len > capacity {
            let reason = format!("{len} tokens are held");
            return Err(Error::argument("cache capacity", capacity, reason));
        }
        let clock = Clock::new(Array::scalar(len)?);
        let fix = |layer: &LayerCache| {
            let LayerCache::Kv(kv) = layer else { return Ok(layer.clone()) };
            let Some((k, v)) = &kv.buffers else {
                return Ok(LayerCache::Fixed(FixedKvCache::new(capacity, &clock)));
            };
            let place = |buffer: &Array| {
                let held = buffer::first(buffer, len)?;
                buffer::write(buffer::room(buffer, capacity)?, &held, 0)
            };
            let fixed = FixedKvCache::from_parts(place(k)?, place(v)?, &clock, len);
            Ok(LayerCache::Fixed(fixed))
        };
        Ok(Self { layers: self.layers.iter().map(fix).collect::<Result<_>>()? })
    }

    /// One cache of the rows of all `caches`, in order.
    ///
    /// # Errors
    /// `Argument` where they are of different kinds or have seen different numbers of tokens; `Mlx`.
    pub fn merge(caches: &[&Self]) -> Result<Self> {
        let Some((first, others)) = caches.split_first() else {
            return Err(Error::argument("caches", 0, "expected at least one"));
        };
        for other in others {
            let same = first.layers.len() == other.layers.len()
                && first.layers.iter().zip(&other.layers).all(|(a, b)| a.matches(b));
            if !same {
                let got = format!("{} and {} tokens", first.len(), other.len());
                let reason = "rows of one cache need the same kinds of layers and as many tokens";
                return Err(Error::argument("caches", got, reason));
            }
        }
        let mut parts: Vec<Self> = caches.iter().map(|cache| (*cache).clone()).collect();
        for part in &mut parts {
            part.layers.iter_mut().try_for_each(LayerCache::compact)?;
        }
        let mut merged = parts[0].clone();
        let mut rows: Vec<_> =
            parts.iter_mut().map(|p| p.layers.iter_mut().flat_map(LayerCache::rows_mut)).collect();
        for array in merged.layers.iter_mut().flat_map(LayerCache::rows_mut) {
            let of_all: Vec<&Array> =
                rows.iter_mut().filter_map(|r| r.next().map(|a| &*a)).collect();
            *array = ops::concatenate(of_all, 0)?;
        }
        Ok(merged)
    }

    /// A cache for each of the rows.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn split(&self) -> Result<Vec<Self>> {
        let rows = self
            .clone()
            .layers
            .iter_mut()
            .flat_map(LayerCache::rows_mut)
            .next()
            .map_or(1, |a| a.dim(0));
        let row = |b| {
            let mut row = self.clone();
            for array in row.layers.iter_mut().flat_map(LayerCache::rows_mut) {
                *array = ops::slice_axis(array, 0, b, b + 1)?;
            }
            Ok(row)
        };
        (0..rows).map(row).collect()
    }
}
