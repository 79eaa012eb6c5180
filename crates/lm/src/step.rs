//! One forward pass: which tokens, of which sequences, and which logits are wanted.

use mlx::{Array, ops, primitives};

use crate::cache::{Cache, LayerCache, Position};
use crate::error::Result;

/// Which positions' logits a forward pass returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Logits {
    /// Those after each row's last token: `[B, 1, V]`.
    #[default]
    Last,
    /// Those after every token: `[B, L, V]`.
    All,
}

/// The input of a forward pass.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// `[B, L]` u32. Each row follows what its cache holds.
    pub tokens: &'a Array,
    /// How many tokens of each row count; the others are padding behind them. `None`: all.
    pub lengths: Option<&'a [i32]>,
    /// Which logits are wanted.
    pub logits: Logits,
}

impl<'a> Step<'a> {
    /// Rows without padding, of which the last position's logits are wanted.
    pub fn new(tokens: &'a Array) -> Self {
        Self { tokens, lengths: None, logits: Logits::Last }
    }

    /// The same with the logits of every position.
    pub fn all_logits(self) -> Self {
        Self { logits: Logits::All, ..self }
    }

    /// The positions of `h` `[B, L, D]` whose logits are wanted.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn wanted(&self, h: &Array) -> Result<Array> {
        let l = h.dim(1);
        if self.logits == Logits::All || l == 1 {
            return Ok(h.clone());
        }
        let Some(lengths) = self.lengths else { return Ok(ops::slice_axis(h, 1, l - 1, l)?) };
        let last = (0..).zip(lengths).map(|(b, len)| {
            let row = ops::slice_axis(h, 0, b, b + 1)?; // [1, L, D]
            ops::slice_axis(&row, 1, len - 1, *len)
        });
        Ok(ops::concatenate(&last.collect::<mlx::Result<Vec<_>>>()?, 0)?)
    }
}

/// The caches of a step's rows: one for each row, or a single one that holds all of them.
pub struct Rows<'a, 'c> {
    caches: &'a mut [&'c mut Cache],
    lengths: Option<&'a [i32]>,
    /// Positions of the rows at the layer before, which nearly always are those of the next one.
    positions: Option<(Vec<i32>, Array)>,
    /// Their lengths after the layer before, likewise.
    grown: Option<(Vec<i32>, Array)>,
}

/// Keys and values of rows that each have a growing cache.
pub struct GrownRows {
    /// Each row's buffer, `[1, H, capacity, D]`.
    pub keys: Vec<Array>,
    /// Likewise.
    pub values: Vec<Array>,
    /// Tokens that each of them holds, `[B]` i32.
    pub lengths: Array,
}

impl<'a, 'c> Rows<'a, 'c> {
    /// The caches that `step` continues.
    pub fn new(step: &Step<'a>, caches: &'a mut [&'c mut Cache]) -> Self {
        Self { caches, lengths: step.lengths, positions: None, grown: None }
    }

    /// What layer `layer` sees of them.
    pub fn layer(&mut self, layer: usize) -> LayerRows<'_, 'c> {
        let Self { caches, lengths, positions, grown } = self;
        LayerRows { caches, lengths: *lengths, positions, grown, layer }
    }
}

/// One layer's caches of a step's rows.
pub struct LayerRows<'a, 'c> {
    caches: &'a mut [&'c mut Cache],
    lengths: Option<&'a [i32]>,
    positions: &'a mut Option<(Vec<i32>, Array)>,
    grown: &'a mut Option<(Vec<i32>, Array)>,
    layer: usize,
}

impl LayerRows<'_, '_> {
    /// Where the rows' first tokens stand: one position for all of them, or one for each.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn positions(&mut self) -> Result<Position> {
        let at = self.caches.iter().map(|c| c.layers[self.layer].position());
        let at = at.collect::<Result<Vec<_>>>()?;
        if let [one] = at.as_slice() {
            return Ok(one.clone());
        }
        let known = |p: &Position| if let Position::Static(at) = p { Some(*at) } else { None };
        let Some(offsets) = at.iter().map(known).collect::<Option<Vec<i32>>>() else {
            let as_row = |p: &Position| match p {
                Position::Static(at) => Array::from_slice(&[*at], &[1]),
                Position::Dynamic(at) => at.reshape(&[1]),
            };
            let rows = at.iter().map(as_row).collect::<mlx::Result<Vec<_>>>()?;
            return Ok(Position::Dynamic(ops::concatenate(&rows, 0)?));
        };
        if offsets.windows(2).all(|pair| pair[0] == pair[1]) {
            return Ok(Position::Static(offsets[0]));
        }
        if let Some((known, array)) = self.positions
            && *known == offsets
        {
            return Ok(Position::Dynamic(array.clone()));
        }
        let array = Array::from_slice(&offsets, &[offsets.len() as i32])?;
        *self.positions = Some((offsets, array.clone()));
        Ok(Position::Dynamic(array))
    }

    /// Adds `keys` and `values` `[B, H, L, D]` to the rows' caches where each row has a growing cache of its own and none
    /// is padded: those of several rows, or by `cache_append` one token. Otherwise `None`, and nothing is added.
    ///
    /// - `fused`: by `cache_append`
    ///
    /// # Errors
    /// `Mlx`.
    pub fn update_growing(
        &mut self,
        keys: &Array,
        values: &Array,
        fused: bool,
    ) -> Result<Option<GrownRows>> {
        let b = self.caches.len();
        let grows = |cache: &&mut Cache| matches!(cache.layers[self.layer], LayerCache::Kv(_));
        let l = keys.dim(2);
        // Of a single row it spares a step of decode two updates and two views; reading a prompt would not notice.
        let worth_it = b > 1 || (fused && l == 1 && keys.dim(0) == 1);
        if !worth_it || self.lengths.is_some() || !self.caches.iter().all(grows) {
            return Ok(None);
        }
        let layer = self.layer;
        let caches: Vec<_> =
            self.caches.iter_mut().filter_map(|c| c.layers[layer].as_kv_mut()).collect();
        let lengths: Vec<i32> = caches.iter().map(|kv| kv.len() + l).collect();
        let lengths = match self.grown {
            Some((known, array)) if *known == lengths => array.clone(),
            _ => {
                let array = Array::from_slice(&lengths, &[b as i32])?;
                *self.grown = Some((lengths, array.clone()));
                array
            }
        };
        let mut buffers = Vec::with_capacity(b);
        if fused {
            for (row, kv) in (0..).zip(caches) {
                let (k, v) = kv.take_with_room(1, keys, values)?;
                let k = primitives::cache_append(&k, keys, row, &lengths)?;
                let v = primitives::cache_append(&v, values, row, &lengths)?;
                buffers.push(kv.put((k, v), l).clone());
            }
        } else {
            let cuts: Vec<i32> = (1..b as i32).collect();
            let keys = ops::split(keys, &cuts, 0)?;
            for (kv, (k, v)) in
                caches.into_iter().zip(keys.iter().zip(&ops::split(values, &cuts, 0)?))
            {
                buffers.push(kv.append(k, v)?.clone());
            }
        }
        let (keys, values) = buffers.into_iter().unzip();
        Ok(Some(GrownRows { keys, values, lengths }))
    }

    /// Applies `mix` to each sequence with its own cache, so that no row sees another. What is the same for every
    /// token is better done for all rows at once, before and after.
    ///
    /// - `inputs`: `[B, .., L, ..]` each, tokens along `axis`; `mix` gets `[1, .., len, ..]` of one row, or all of them
    ///   where one cache holds all, and returns as many rows and tokens
    /// - returns `[B, .., L, ..]`, zeros in the padding
    ///
    /// # Errors
    /// Those of `mix`; `Mlx`.
    pub fn each<const N: usize>(
        &mut self,
        axis: i32,
        inputs: [&Array; N],
        mut mix: impl FnMut([Array; N], &mut LayerCache) -> Result<Array>,
    ) -> Result<Array> {
        if let ([cache], None) = (&mut *self.caches, self.lengths) {
            return mix(inputs.map(Array::clone), &mut cache.layers[self.layer]);
        }
        let (b, padded) = (self.caches.len(), inputs[0].dim(axis));
        let cuts: Vec<i32> = (1..b as i32).collect();
        let mut split = Vec::with_capacity(N);
        for input in inputs {
            let rows = if b > 1 { ops::split(input, &cuts, 0)? } else { vec![input.clone()] };
            split.push(rows.into_iter());
        }
        let mut rows = Vec::with_capacity(b);
        for (b, cache) in self.caches.iter_mut().enumerate() {
            let len = self.lengths.map_or(padded, |lengths| lengths[b]);
            let mut parts = Vec::with_capacity(N);
            for row in split.iter_mut().filter_map(Iterator::next) {
                let all = len == padded;
                parts.push(if all { row } else { ops::slice_axis(&row, axis, 0, len)? });
            }
            let Ok(parts) = <[Array; N]>::try_from(parts) else { unreachable!("N parts") };
            let mixed = mix(parts, &mut cache.layers[self.layer])?;
            rows.push(pad(mixed, axis, padded)?);
        }
        Ok(ops::concatenate(&rows, 0)?)
    }
}

/// `x` with zeros along `axis` up to `padded`.
fn pad(x: Array, axis: i32, padded: i32) -> Result<Array> {
    if x.dim(axis) == padded {
        return Ok(x);
    }
    let mut shape = x.shape().to_vec();
    shape[axis as usize] = padded - x.dim(axis);
    let zeros = ops::zeros(&shape, x.dtype())?;
    Ok(ops::concatenate(&[x, zeros], axis)?)
}
