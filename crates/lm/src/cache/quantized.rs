use mlx::quantization::{Quantization, QuantizedWeight, quantized_matmul};
use mlx::{Array, ops};

use super::buffer::{first, grow, whole_steps, write};
use super::{AttentionMask, masked};
use crate::error::{Error, Result};

/// How keys and values are packed, and from when on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvQuantization {
    /// Bits per number.
    pub bits: i32,
    /// Numbers per scale.
    pub group_size: i32,
    /// Tokens that a cache holds before it is packed.
    pub start: i32,
}

impl KvQuantization {
    /// In groups of 64, once 5000 tokens are held: mlx-lm's defaults.
    pub fn new(bits: i32) -> Self {
        Self { bits, group_size: 64, start: 5000 }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if ![2, 3, 4, 6, 8].contains(&self.bits) {
            return Err(Error::argument("kv_bits", self.bits, "expected 2, 3, 4, 6 or 8"));
        }
        if ![32, 64, 128].contains(&self.group_size) {
            return Err(Error::argument(
                "kv_group_size",
                self.group_size,
                "expected 32, 64 or 128",
            ));
        }
        if self.start < 0 {
            return Err(Error::argument("quantized_kv_start", self.start, "expected 0 or more"));
        }
        Ok(())
    }
}

/// One layer's keys and values, packed, in buffers that grow by [`GROW_STEP`](super::GROW_STEP) tokens.
///
/// # Source
/// mlx-lm `cache.py` (`QuantizedKVCache`).
#[derive(Debug, Clone)]
pub struct QuantizedKvCache {
    pub(super) buffers: Option<(QuantizedWeight, QuantizedWeight)>,
    pub(super) len: i32,
    quantization: KvQuantization,
}

impl QuantizedKvCache {
    /// An empty one.
    pub fn new(quantization: KvQuantization) -> Self {
        Self { buffers: None, len: 0, quantization }
    }

    /// Packs buffers of which the first `len` tokens count.
    pub(super) fn of(
        buffers: Option<&(Array, Array)>,
        len: i32,
        quantization: KvQuantization,
    ) -> Result<Self> {
        let mut packed = Self::new(quantization);
        if let Some((k, v)) = buffers {
            packed.buffers = Some((packed.pack(k)?, packed.pack(v)?));
            packed.len = len;
        }
        Ok(packed)
    }

    fn pack(&self, x: &Array) -> Result<QuantizedWeight> {
        let KvQuantization { group_size, bits, .. } = self.quantization;
        Ok(QuantizedWeight::quantize(x, Quantization::affine(group_size, bits))?)
    }

    /// Tokens held.
    pub fn len(&self) -> i32 {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How they are packed.
    pub fn quantization(&self) -> KvQuantization {
        self.quantization
    }

    /// Packs and appends `keys` and `values`, `[B, H, L, D]`, and returns those of all tokens so far.
    ///
    /// # Errors
    /// `Mlx`, when the width of a head is not a multiple of the group size.
    pub fn update(
        &mut self,
        keys: &Array,
        values: &Array,
    ) -> Result<(QuantizedWeight, QuantizedWeight)> {
        let (keys, values) = (self.pack(keys)?, self.pack(values)?);
        let (held_k, held_v) = self.buffers.take().unzip();
        let k = self.append(held_k, &keys)?;
        let v = self.append(held_v, &values)?;
        self.len += keys.w.dim(2);
        let end = self.len;
        let all = (each(&k, |part| first(part, end))?, each(&v, |part| first(part, end))?);
        self.buffers = Some((k, v));
        Ok(all)
    }

    fn append(
        &self,
        held: Option<QuantizedWeight>,
        added: &QuantizedWeight,
    ) -> Result<QuantizedWeight> {
        let end = self.len + added.w.dim(2);
        let room = whole_steps(added.w.dim(2));
        let extend = |held: Option<&Array>, added: &Array| {
            let buffer = match held {
                Some(held) if end <= held.dim(2) => held.clone(),
                held => grow(held.cloned(), self.len, added, room)?,
            };
            write(buffer, added, self.len)
        };
        let part = |of: fn(&QuantizedWeight) -> &Array| extend(held.as_ref().map(of), of(added));
        let biases = match &added.biases {
            None => None,
            Some(added) => Some(extend(held.as_ref().and_then(|h| h.biases.as_ref()), added)?),
        };
        Ok(QuantizedWeight {
            w: part(|q| &q.w)?,
            scales: part(|q| &q.scales)?,
            biases,
            quantization: added.quantization,
        })
    }

    /// Forgets the last `n` tokens, or all where there are fewer; returns how many.
    pub fn trim(&mut self, n: i32) -> i32 {
        let n = n.clamp(0, self.len);
        self.len -= n;
        n
    }

    pub(super) fn compact(&mut self) -> Result<()> {
        let end = self.len;
        if let Some((k, v)) = &self.buffers {
            let short = |q| each(q, |part| first(part, end));
            self.buffers = Some((short(k)?, short(v)?));
        }
        Ok(())
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.buffers.iter().flat_map(|(k, v)| [k, v]).flat_map(|q| {
            let QuantizedWeight { w, scales, biases, .. } = q;
            [w, scales].into_iter().chain(biases)
        })
    }

    pub(super) fn arrays_mut(&mut self) -> impl Iterator<Item = &mut Array> {
        self.buffers.iter_mut().flat_map(|(k, v)| [k, v]).flat_map(|q| {
            let QuantizedWeight { w, scales, biases, .. } = q;
            [w, scales].into_iter().chain(biases)
        })
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new(self.quantization);
    }
}

/// `change` of each array.
fn each(
    q: &QuantizedWeight,
    mut change: impl FnMut(&Array) -> Result<Array>,
) -> Result<QuantizedWeight> {
    Ok(QuantizedWeight {
        w: change(&q.w)?,
        scales: change(&q.scales)?,
        biases: q.biases.as_ref().map(change).transpose()?,
        quantization: q.quantization,
    })
}

/// softmax(q·kᵀ·scale)·v over packed keys and values.
///
/// - `q`: `[B, H, L, D]`; `keys`, `values`: `[B, Hkv, T, D]`; returns `[B, H, L, D]`
///
/// # Errors
/// `Mlx`.
/// # Source
/// mlx-lm `base.py` (`quantized_scaled_dot_product_attention`).
pub fn quantized_attention(
    q: &Array,
    keys: &QuantizedWeight,
    values: &QuantizedWeight,
    scale: f32,
    mask: &AttentionMask,
) -> Result<Array> {
    let (b, h, l, d) = (q.dim(0), q.dim(1), q.dim(2), q.dim(3));
    let h_kv = keys.w.dim(1);
    let mut q = ops::multiply(q, &Array::scalar_like(scale, q)?)?;
    let grouped = h > h_kv;
    let (mut k, mut v) = (keys.clone(), values.clone());
    if grouped {
        q = q.reshape(&[b, h_kv, h / h_kv, l, d])?;
        k = each(&k, |part| Ok(ops::expand_dims(part, &[-3])?))?;
        v = each(&v, |part| Ok(ops::expand_dims(part, &[-3])?))?;
    }
    let mut scores = quantized_matmul(&q, &k, true)?; // [B, H, L, T]
    if let Some(mask) = mask.to_array(l, scores.dim(-1))? {
        scores = masked(&scores, &mask)?;
    }
    let scores = ops::softmax(&scores, -1, true)?;
    let y = quantized_matmul(&scores, &v, false)?;
    Ok(if grouped { y.reshape(&[b, h, l, y.dim(-1)])? } else { y })
}
