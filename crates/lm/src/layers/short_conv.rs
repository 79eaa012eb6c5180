use mlx::{Array, ops};

use super::{Fusable, Linear, Mixer, ModulePath, Site};
use crate::cache::{LayerCache, StateCache};
use crate::error::{Error, Result};
use crate::step::LayerRows;
use crate::weights::Scope;

/// A causal convolution along the sequence, each channel by itself; what it remembers are its last inputs.
#[derive(Debug, Clone)]
pub struct CausalConv {
    weight: Array,
    bias: Option<Array>,
}

impl CausalConv {
    /// Takes a weight of `[channels, kernel_size, 1]` and, if `bias`, a bias of `[channels]`.
    ///
    /// # Errors
    /// `MissingWeight`, `WeightShape`, `WeightDtype`.
    pub fn load(scope: &Scope<'_>, channels: i32, kernel_size: i32, bias: bool) -> Result<Self> {
        Ok(Self {
            weight: scope.take_float("weight", &[channels, kernel_size, 1])?,
            bias: if bias { Some(scope.take_float("bias", &[channels])?) } else { None },
        })
    }

    /// - `x`: `[B, L, C]`, which follows the inputs that array `index` of `state` holds; returns the same shape.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, x: &Array, state: &mut StateCache, index: usize) -> Result<Array> {
        let (b, channels) = (x.dim(0), x.dim(2));
        let kept = self.weight.dim(1) - 1;
        let before = match state.take(index) {
            Some(before) => before,
            None => ops::zeros(&[b, kept, channels], x.dtype())?,
        };
        let x = ops::concatenate(&[before, x.clone()], 1)?; // [B, K - 1 + L, C]
        let last = ops::slice_axis(&x, 1, x.dim(1) - kept, x.dim(1))?;
        // a copy: a view would keep all of the inputs
        state.set(index, ops::contiguous(&last)?);
        let y = ops::depthwise_conv1d(&x, &self.weight)?;
        match &self.bias {
            Some(bias) => Ok(ops::add(&y, bias)?),
            None => Ok(y),
        }
    }
}

/// LFM2's short convolution: `out(C * conv(B * x))`, with `B`, `C` and `x` from one projection (arXiv:2511.23404).
#[derive(Debug, Clone)]
pub struct ShortConv {
    in_proj: Linear,
    conv: CausalConv,
    out_proj: Linear,
}

impl ShortConv {
    /// Takes `in_proj`, `conv` and `out_proj`, each with a bias if `bias`.
    ///
    /// # Errors
    /// As [`Linear::load`]; `Checkpoint` when ranks are to share it.
    pub fn load(
        scope: &Scope<'_>,
        hidden_size: i32,
        kernel_size: i32,
        bias: bool,
    ) -> Result<Self> {
        scope.not_shared("a short convolution")?;
        let linear = |name: &str, width| {
            Linear::load_with(&scope.pp(name), hidden_size, width, bias)
        };
        Ok(Self {
            in_proj: linear("in_proj", 3 * hidden_size)?,
            conv: CausalConv::load(&scope.pp("conv"), hidden_size, kernel_size, bias)?,
            out_proj: linear("out_proj", hidden_size)?,
        })
    }

}

/// # Source
/// mlx-lm `lfm2.py` (`ShortConv`).
impl Mixer for ShortConv {
    fn forward(&self, x: &Array, mut rows: LayerRows<'_, '_>) -> Result<Array> {
        let [b, c, x] = thirds(&self.in_proj.forward(x)?)?;
        let bx = ops::multiply(&b, &x)?;
        let y = rows.each(1, [&bx], |[bx], cache| {
            let state = state_of(cache)?;
            let y = self.conv.forward(&bx, state, 0)?;
            state.advance(bx.dim(1));
            Ok(y)
        })?; // [B, L, D]
        self.out_proj.forward(&ops::multiply(&c, &y)?)
    }

    /// Room for the inputs that the convolution remembers.
    fn make_cache(&self) -> LayerCache {
        LayerCache::State(StateCache::new(1))
    }
}

impl Fusable for ShortConv {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        self.in_proj.sites(&at.pp("in_proj"), sites);
        self.out_proj.sites(&at.pp("out_proj"), sites);
    }
}

fn thirds(x: &Array) -> Result<[Array; 3]> {
    let width = x.dim(-1) / 3;
    let third = |i| ops::slice_axis(x, -1, i * width, (i + 1) * width);
    Ok([third(0)?, third(1)?, third(2)?])
}

/// The recurrent state of a layer that has one.
pub(super) fn state_of(cache: &mut LayerCache) -> Result<&mut StateCache> {
    let reason = "a recurrent layer needs one of recurrent state";
    let kind = cache.kind();
    cache.as_state().ok_or_else(|| Error::argument("layer cache", kind, reason))
}
