//! A sequence's cache in a file, in the format of mlx-lm: `mlx_lm.cache_prompt` writes it, `mlx_lm.generate` continues it.
//!
//! A safetensors file. Layer `i` is a tree of arrays and scalars, whose leaves are tensors called `i.a.b`; the metadata say
//! which class of mlx-lm's each layer is of, which leaves are no arrays, and which model made them.
//!
//! # Source
//! mlx-lm `cache.py` (`save_prompt_cache`, `load_prompt_cache`, the `state` of each class).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use mlx::quantization::{Quantization, QuantizedWeight};
use mlx::{Array, Dtype, ops};

use super::{
    Cache, KvCache, KvQuantization, LayerCache, QuantizedKvCache, StateCache, WindowCache, buffer,
};
use crate::checkpoint;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::step::Step;

/// How deep the trees of a file may be; mlx-lm's have three levels.
const MAX_DEPTH: usize = 8;
/// More layers than any model has.
const MAX_LAYERS: usize = 10_000;

/// A layer's state as mlx-lm has it.
#[derive(Debug)]
enum State {
    Array(Array),
    Number(i32),
    Text(String),
    Nothing,
    Tuple(Vec<State>),
}

/// Why a file's state is no cache.
type Refusal = String;

/// A cache that was read from a file.
#[derive(Debug)]
pub struct SavedCache {
    path: PathBuf,
    /// The model that made it, as whoever made it called it.
    pub model: Option<String>,
    /// What it holds.
    pub cache: Cache,
}

impl SavedCache {
    /// Reads a file of mlx-lm's or of ours into memory.
    ///
    /// # Errors
    /// `Io`; `Checkpoint` for what is no prompt cache, or one of a kind that does not exist here.
    pub fn load(path: &Path) -> Result<Self> {
        let refused = |reason: String| Error::checkpoint(path, reason);
        checkpoint::read_header(path)?;
        let file = mlx::io::load_safetensors(path)?;
        let (classes, mut arrays) = states(file).map_err(refused)?;
        let mut layers = Vec::new();
        for (i, class) in classes.names.iter().enumerate() {
            let state = arrays.remove(&i).ok_or_else(|| refused(format!("lacks layer {i}")))?;
            let layer = decode(class, state);
            layers.push(layer.map_err(|why| refused(format!("layer {i} ({class}) {why}")))?);
        }
        let mut cache = Cache { layers };
        mlx::eval(cache.arrays())?;
        // mlx-lm does not write how many tokens a recurrent state has seen: as many as the layers beside it
        let len = cache.layers.iter().map(LayerCache::len).max().unwrap_or(0);
        cache.layers.iter_mut().for_each(|layer| set_state_len(layer, len));
        Ok(Self { path: path.to_owned(), model: classes.model, cache })
    }

    /// The cache, which has to be one that `model` could have made.
    ///
    /// # Errors
    /// `Checkpoint` when its layers are of other kinds or sizes than the model's; `Mlx`.
    pub fn into_cache(mut self, model: &dyn Model) -> Result<Cache> {
        let mut own = model.make_cache();
        // the graph of a step, of which nothing is computed, says what the layers' arrays look like
        model.forward(&Step::new(&ops::zeros(&[1, 1], Dtype::U32)?), &mut [&mut own])?;
        let refused = |reason| Err(Error::checkpoint(self.path.clone(), reason));
        let (held, wanted) = (self.cache.layers.len(), own.layers.len());
        if held != wanted {
            return refused(format!("is of a model of {held} layers; this one has {wanted}"));
        }
        for (i, (layer, own)) in self.cache.layers.iter().zip(&own.layers).enumerate() {
            if !fits(layer, own) {
                return refused(format!(
                    "is of another model: layer {i} is {} {}, this one's is {} {}",
                    layer.kind(),
                    shapes(layer),
                    own.kind(),
                    shapes(own)
                ));
            }
        }
        for (layer, own) in self.cache.layers.iter_mut().zip(&own.layers) {
            set_latent(layer, own);
        }
        Ok(self.cache)
    }
}

/// Writes a cache.
///
/// - `model`: what the user calls the model; mlx-lm continues the file for a model of that name alone
///
/// # Errors
/// `Mlx`.
pub fn save(path: &Path, cache: &Cache, model: &str) -> Result<()> {
    let mut leaves = Vec::new();
    let mut classes = Vec::new();
    for (i, layer) in cache.layers.iter().enumerate() {
        let (class, state) = encode(layer)?;
        classes.push(class);
        flatten(state, i.to_string(), &mut leaves);
    }
    // the empty text at the head keeps mlx-lm's list from being empty
    let mut metadata = vec![
        ("0.model".to_owned(), model.to_owned()),
        ("0.tokenizer_config".to_owned(), "{}".to_owned()),
        ("2.0".to_owned(), String::new()),
    ];
    for (i, class) in classes.iter().enumerate() {
        metadata.push((format!("1.{i}"), (*class).to_owned()));
    }
    let mut arrays = Vec::new();
    let mut num_scalars = 0;
    for (name, leaf) in leaves {
        let (array, kind) = match leaf {
            State::Array(array) => (array, None),
            State::Number(number) => (Array::scalar(number)?, Some("scalar")),
            State::Text(text) => {
                let codes: Vec<i32> = text.chars().map(|c| c as i32).collect();
                (Array::from_slice(&codes, &[codes.len() as i32])?, Some("string"))
            }
            State::Nothing | State::Tuple(_) => (ops::zeros(&[0], Dtype::F32)?, Some("none")),
        };
        if let Some(kind) = kind {
            num_scalars += 1;
            metadata.push((format!("2.{num_scalars}.0"), name.clone()));
            metadata.push((format!("2.{num_scalars}.1"), kind.to_owned()));
        }
        arrays.push((name, ops::contiguous(&array)?));
    }
    mlx::io::save_safetensors(
        path,
        arrays.iter().map(|(name, array)| (name.as_str(), array)),
        metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())),
    )?;
    Ok(())
}

/// A layer's class and state.
fn encode(layer: &LayerCache) -> Result<(&'static str, State)> {
    let array = |array: &Option<Array>| array.clone().map_or(State::Nothing, State::Array);
    let pair = |pair: &Option<(Array, Array)>| {
        let (k, v) = pair.clone().unzip();
        [array(&k), array(&v)]
    };
    Ok(match layer {
        LayerCache::Kv(kv) => {
            let [k, v] = pair(&kv.buffers);
            ("KVCache", State::Tuple(vec![k, v, State::Number(kv.len)]))
        }
        LayerCache::Fixed(kv) => {
            let held = match &kv.buffers {
                None => None,
                Some((k, v)) => Some((buffer::first(k, kv.len())?, buffer::first(v, kv.len())?)),
            };
            let [k, v] = pair(&held);
            ("KVCache", State::Tuple(vec![k, v, State::Number(kv.len())]))
        }
        LayerCache::Recorded(_) => {
            let reason = "a step that is being recorded has to end before it is saved";
            return Err(Error::argument("layer cache", layer.kind(), reason));
        }
        LayerCache::Window(window) => {
            let [k, v] = pair(&window.buffers);
            let numbers = window.numbers().map(State::Number);
            ("RotatingKVCache", State::Tuple([k, v].into_iter().chain(numbers).collect()))
        }
        LayerCache::Quantized(kv) => {
            let parts = |q: &QuantizedWeight| {
                let biases = array(&q.biases);
                State::Tuple(vec![
                    State::Array(q.w.clone()),
                    State::Array(q.scales.clone()),
                    biases,
                ])
            };
            let (k, v) = kv.buffers.as_ref().map(|(k, v)| (parts(k), parts(v))).unzip();
            let KvQuantization { bits, group_size, .. } = kv.quantization();
            let numbers = [kv.len, group_size, bits].map(State::Number);
            let [k, v] = [k, v].map(|part| part.unwrap_or(State::Nothing));
            ("QuantizedKVCache", State::Tuple([k, v].into_iter().chain(numbers).collect()))
        }
        LayerCache::State(state) => {
            let arrays = State::Tuple(state.arrays.iter().map(array).collect());
            ("ArraysCache", State::Tuple(vec![arrays, State::Nothing, State::Nothing]))
        }
        LayerCache::List(list) => {
            let part = |part: &LayerCache| {
                let (class, state) = encode(part)?;
                Ok(State::Tuple(vec![state, State::Text(class.to_owned())]))
            };
            ("CacheList", State::Tuple(list.iter().map(part).collect::<Result<_>>()?))
        }
    })
}

fn flatten(state: State, name: String, leaves: &mut Vec<(String, State)>) {
    match state {
        State::Tuple(parts) => {
            for (i, part) in parts.into_iter().enumerate() {
                flatten(part, format!("{name}.{i}"), leaves);
            }
        }
        leaf => leaves.push((name, leaf)),
    }
}

/// What a file's metadata say.
struct Classes {
    names: Vec<String>,
    model: Option<String>,
}

/// The layers' classes, and their states by number.
fn states(file: mlx::io::Safetensors) -> Result<(Classes, BTreeMap<usize, State>), Refusal> {
    const OTHER: &str = "is no prompt cache of mlx-lm 0.32";
    let metadata = file.metadata;
    if !metadata.contains_key("2.0") || !metadata.contains_key("1.0") {
        return Err(OTHER.to_owned());
    }
    let listed = |key: &dyn Fn(usize) -> String| {
        (0..).map_while(|i| metadata.get(&key(i)).cloned()).collect::<Vec<String>>()
    };
    let names = listed(&|i| format!("1.{i}"));
    if names.len() > MAX_LAYERS {
        return Err(format!("claims {} layers", names.len()));
    }
    let scalars: HashMap<String, String> = listed(&|i| format!("2.{}.0", i + 1))
        .into_iter()
        .zip(listed(&|i| format!("2.{}.1", i + 1)))
        .collect();
    let mut root = Tree::default();
    for (name, array) in file.arrays {
        let leaf = leaf(array, scalars.get(&name).map(String::as_str))
            .map_err(|why| format!("`{name}` {why}"))?;
        let path: Option<Vec<usize>> = name.split('.').map(|part| part.parse().ok()).collect();
        let path = path.filter(|path| path.len() <= MAX_DEPTH);
        root.insert(&path.ok_or_else(|| format!("holds `{name}`, which {OTHER}"))?, leaf);
    }
    let states = root.children.into_iter().map(|(i, tree)| Ok((i, tree.state()?)));
    let model = metadata.get("0.model").cloned();
    Ok((Classes { names, model }, states.collect::<Result<_, Refusal>>()?))
}

fn leaf(array: Array, kind: Option<&str>) -> Result<State, Refusal> {
    let failed = |error: mlx::Error| error.to_string();
    Ok(match kind {
        None => State::Array(array),
        Some("none") => State::Nothing,
        Some("scalar") => {
            if array.size() != 1 || !(array.dtype().is_integer() || array.dtype() == Dtype::Bool) {
                return Err(format!("is {} {:?}, expected a number", array.dtype(), array.shape()));
            }
            State::Number(array.astype(Dtype::I32).and_then(|a| a.item()).map_err(failed)?)
        }
        Some("string") => {
            let codes = array.astype(Dtype::U32).and_then(|a| a.to_vec::<u32>()).map_err(failed)?;
            State::Text(codes.into_iter().filter_map(char::from_u32).collect())
        }
        Some(other) => return Err(format!("is a `{other}`, which is not known")),
    })
}

/// Leaves by their places.
#[derive(Default)]
struct Tree {
    leaf: Option<State>,
    children: BTreeMap<usize, Tree>,
}

impl Tree {
    fn insert(&mut self, path: &[usize], leaf: State) {
        match path.split_first() {
            None => self.leaf = Some(leaf),
            Some((first, rest)) => self.children.entry(*first).or_default().insert(rest, leaf),
        }
    }

    fn state(self) -> Result<State, Refusal> {
        if let Some(leaf) = self.leaf {
            return Ok(leaf);
        }
        let in_order = self.children.keys().copied().eq(0..self.children.len());
        if !in_order {
            return Err("has a state with gaps".to_owned());
        }
        self.children.into_values().map(Self::state).collect::<Result<_, _>>().map(State::Tuple)
    }
}

/// A layer of a class of mlx-lm's.
fn decode(class: &str, state: State) -> Result<LayerCache, Refusal> {
    let State::Tuple(parts) = state else { return Err("is no list".to_owned()) };
    let mut parts = Parts(parts.into_iter());
    let layer = match class {
        "KVCache" => {
            let (buffers, len) = (parts.buffers()?, parts.number()?);
            let capacity = buffers.as_ref().map_or(0, |(k, _)| k.dim(2));
            if !(0..=capacity).contains(&len) {
                return Err(format!("claims {len} tokens in room for {capacity}"));
            }
            LayerCache::Kv(KvCache { buffers, len, ..KvCache::default() })
        }
        "RotatingKVCache" => {
            let buffers = parts.buffers()?;
            let numbers = [parts.number()?, parts.number()?, parts.number()?, parts.number()?];
            LayerCache::Window(WindowCache::from_parts(buffers, numbers)?)
        }
        "QuantizedKVCache" => {
            let (keys, values) = (parts.next()?, parts.next()?);
            let (len, group_size, bits) = (parts.number()?, parts.number()?, parts.number()?);
            let quantization = KvQuantization { bits, group_size, start: 0 };
            quantization.check().map_err(|error| error.to_string())?;
            let keys = packed(keys, quantization)?;
            let values = packed(values, quantization)?;
            let buffers = keys.zip(values);
            let capacity = buffers.as_ref().map_or(0, |(k, _)| k.w.dim(2));
            let same =
                |(k, v): &(QuantizedWeight, QuantizedWeight)| k.w.shape()[..3] == v.w.shape()[..3];
            if !(0..=capacity).contains(&len) || !buffers.as_ref().is_none_or(same) {
                return Err(format!("claims {len} tokens in room for {capacity}"));
            }
            let mut kv = QuantizedKvCache::new(quantization);
            (kv.buffers, kv.len) = (buffers, len);
            LayerCache::Quantized(kv)
        }
        "ArraysCache" => {
            let State::Tuple(arrays) = parts.next()? else { return Err("is no list".to_owned()) };
            let mut arrays = Parts(arrays.into_iter());
            let mut held = StateCache::new(arrays.0.len());
            for array in &mut held.arrays {
                *array = arrays.array()?;
            }
            // mlx-lm's padding of batches, which a single sequence does not have
            for _ in 0..2 {
                if !matches!(parts.next()?, State::Nothing) {
                    return Err("is of a batch".to_owned());
                }
            }
            LayerCache::State(held)
        }
        "CacheList" => {
            let list = parts.0.by_ref().map(|part| match part {
                State::Tuple(part) => match <[State; 2]>::try_from(part) {
                    Ok([state, State::Text(class)]) => decode(&class, state),
                    _ => Err("has a part without a class".to_owned()),
                },
                _ => Err("has a part without a class".to_owned()),
            });
            LayerCache::List(list.collect::<Result<_, _>>()?)
        }
        _ => return Err("is of a class that does not exist here".to_owned()),
    };
    if parts.0.next().is_some() { Err("holds more than it should".to_owned()) } else { Ok(layer) }
}

/// The parts of a state, one by one.
struct Parts(std::vec::IntoIter<State>);

impl Parts {
    fn next(&mut self) -> Result<State, Refusal> {
        self.0.next().ok_or_else(|| "holds less than it should".to_owned())
    }

    fn number(&mut self) -> Result<i32, Refusal> {
        match self.next()? {
            State::Number(number) => Ok(number),
            _ => Err("lacks a number".to_owned()),
        }
    }

    fn array(&mut self) -> Result<Option<Array>, Refusal> {
        match self.next()? {
            State::Array(array) => Ok(Some(array)),
            State::Nothing => Ok(None),
            _ => Err("lacks an array".to_owned()),
        }
    }

    /// Keys and values, `[B, H, T, D]` each.
    fn buffers(&mut self) -> Result<Option<(Array, Array)>, Refusal> {
        let Some((k, v)) = self.array()?.zip(self.array()?) else { return Ok(None) };
        let fits = k.ndim() == 4 && v.ndim() == 4 && k.shape()[..3] == v.shape()[..3];
        if fits && k.dtype().is_float() && v.dtype().is_float() {
            return Ok(Some((k, v)));
        }
        Err(format!("has keys {:?} and values {:?}", k.shape(), v.shape()))
    }
}

fn packed(state: State, of: KvQuantization) -> Result<Option<QuantizedWeight>, Refusal> {
    let parts = match state {
        State::Nothing => return Ok(None),
        State::Tuple(parts) => parts,
        _ => return Err("has keys and values that are not packed".to_owned()),
    };
    let mut parts = Parts(parts.into_iter());
    let (Some(w), Some(scales), Some(biases)) = (parts.array()?, parts.array()?, parts.array()?)
    else {
        return Err("lacks a part of its keys or values".to_owned());
    };
    let KvQuantization { bits, group_size, .. } = of;
    let fits = w.ndim() == 4
        && w.dtype() == Dtype::U32
        && scales.ndim() == 4
        && scales.shape() == biases.shape()
        && scales.shape()[..3] == w.shape()[..3]
        && i64::from(w.dim(-1)) * 32 == i64::from(scales.dim(-1)) * i64::from(group_size * bits);
    if !fits {
        let reason = format!("has codes {:?} with scales {:?}", w.shape(), scales.shape());
        return Err(format!("{reason} for {bits} bits in groups of {group_size}"));
    }
    let quantization = Quantization::affine(group_size, bits);
    Ok(Some(QuantizedWeight { w, scales, biases: Some(biases), quantization }))
}

fn set_state_len(layer: &mut LayerCache, len: i32) {
    match layer {
        LayerCache::State(state) => state.len = len,
        LayerCache::List(list) => list.iter_mut().for_each(|part| set_state_len(part, len)),
        _ => {}
    }
}

/// mlx-lm does not tell latents from keys and values; the model does.
fn set_latent(layer: &mut LayerCache, own: &LayerCache) {
    match (layer, own) {
        (LayerCache::Kv(kv), LayerCache::Kv(own)) => kv.is_latent = own.is_latent,
        (LayerCache::List(list), LayerCache::List(own)) => {
            list.iter_mut().zip(own).for_each(|(layer, own)| set_latent(layer, own));
        }
        _ => {}
    }
}

/// Whether a model whose layer looks like `own` after a token could have made `layer`.
fn fits(layer: &LayerCache, own: &LayerCache) -> bool {
    let same = |a: &Array, b: &Array| {
        // but for the number of tokens
        let dims = |a: &Array| [0, 1, 3].map(|axis| a.dim(axis));
        a.dtype() == b.dtype() && b.ndim() == 4 && dims(a) == dims(b)
    };
    let alike = |a: &Option<(Array, Array)>, b: &Option<(Array, Array)>| match (a, b) {
        (Some((k, v)), Some((own_k, own_v))) => same(k, own_k) && same(v, own_v),
        (a, _) => a.is_none(),
    };
    match (layer, own) {
        (LayerCache::Kv(a), LayerCache::Kv(b)) => alike(&a.buffers, &b.buffers),
        // of a cache of limited size
        (LayerCache::Window(a), LayerCache::Kv(b)) => alike(&a.buffers, &b.buffers),
        (LayerCache::Window(a), LayerCache::Window(b)) => {
            alike(&a.buffers, &b.buffers) && (a.max_size(), a.keep()) == (b.max_size(), b.keep())
        }
        (LayerCache::Quantized(a), LayerCache::Kv(b)) if !b.is_latent => {
            match (&a.buffers, &b.buffers) {
                (Some((k, v)), Some((own_k, own_v))) => {
                    [(k, own_k), (v, own_v)].into_iter().all(|(packed, own)| {
                        let width = packed.scales.dim(-1) * packed.quantization.group_size;
                        let dims = [packed.w.dim(0), packed.w.dim(1), width];
                        packed.scales.dtype() == own.dtype()
                            && dims == [0, 1, 3].map(|axis| own.dim(axis))
                    })
                }
                (a, _) => a.is_none(),
            }
        }
        (LayerCache::State(a), LayerCache::State(b)) => {
            let facts = |s: &StateCache| -> Vec<_> {
                let of = |a: &Option<Array>| a.as_ref().map(|a| (a.shape().to_vec(), a.dtype()));
                s.arrays.iter().map(of).collect()
            };
            facts(a) == facts(b)
        }
        (LayerCache::List(a), LayerCache::List(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| fits(a, b))
        }
        _ => false,
    }
}

fn shapes(layer: &LayerCache) -> String {
    let shape = |array: &Array| format!("{} {:?}", array.dtype(), array.shape());
    let shapes: Vec<String> = layer.arrays().map(shape).collect();
    format!("[{}]", shapes.join(", "))
}
