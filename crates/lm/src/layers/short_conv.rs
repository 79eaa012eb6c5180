use mlx::{Array, ops, primitives};

use super::site::ask;
use super::{Fusable, Linear, Mixer, ModuleKind, ModulePath, Path, Site};
use crate::cache::{LayerCache, StateCache};
use crate::error::{Error, Result};
use crate::step::LayerRows;
use crate::weights::Scope;

/// A causal convolution along the sequence, each channel by itself; what it remembers are its last inputs.
#[derive(Debug, Clone)]
pub struct CausalConv {
    /// `[C, K, 1]`, whose channels lie together in memory.
    weight: Array,
    bias: Option<Array>,
    gated: bool,
    path: Path,
}

impl CausalConv {
    /// Takes a weight of `[channels, kernel_size, 1]` and, if `bias`, a bias of `[channels]`.
    ///
    /// - `gated`: whether it stands between two gates instead of under `silu`
    ///
    /// # Errors
    /// `MissingWeight`, `WeightShape`, `WeightDtype`.
    pub fn load(
        scope: &Scope<'_>,
        channels: i32,
        kernel_size: i32,
        bias: bool,
        gated: bool,
    ) -> Result<Self> {
        let weight = scope.take_float("weight", &[channels, kernel_size, 1])?;
        let by_tap = ops::contiguous(&ops::swapaxes(&weight, 0, 1)?)?;
        Ok(Self {
            weight: ops::swapaxes(&by_tap, 0, 1)?,
            bias: if bias { Some(scope.take_float("bias", &[channels])?) } else { None },
            gated,
            path: Path::Stock,
        })
    }

    /// - `x`: `[B, L, C]`, or with gates thirds `[b, c, u]` of `[B, L, 3 * C]`, which follow what array `index` of `state`
    ///   holds; returns `silu(conv(x))` or `c * conv(b * u)`, `[B, L, C]`
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, x: &Array, state: &mut StateCache, index: usize) -> Result<Array> {
        let (channels, kept) = (self.weight.dim(0), self.weight.dim(1) - 1);
        let before = match state.take(index) {
            Some(before) => before,
            None => ops::zeros(&[x.dim(0), kept, channels], x.dtype())?,
        };
        let (y, last) = match self.path {
            Path::Stock => self.stock(x, before)?,
            Path::Fused(_) => {
                let bias = self.bias.as_ref();
                primitives::short_conv(x, &self.weight, bias, &before, self.gated)?
            }
        };
        state.set(index, last);
        Ok(y)
    }

    fn stock(&self, x: &Array, before: Array) -> Result<(Array, Array)> {
        let (channels, kept) = (self.weight.dim(0), self.weight.dim(1) - 1);
        let third = |i| ops::slice_axis(x, -1, i * channels, (i + 1) * channels);
        let (u, c) = match self.gated {
            true => (ops::multiply(&third(0)?, &third(2)?)?, Some(third(1)?)),
            false => (x.clone(), None),
        };
        let u = ops::concatenate(&[before, u], 1)?; // [B, K - 1 + L, C]
        // a copy: a view would keep all of the inputs
        let last = ops::contiguous(&ops::slice_axis(&u, 1, u.dim(1) - kept, u.dim(1))?)?;
        let mut y = ops::depthwise_conv1d(&u, &self.weight)?;
        if let Some(bias) = &self.bias {
            y = ops::add(&y, bias)?;
        }
        let y = match c {
            Some(c) => ops::multiply(&c, &y)?,
            None => ops::silu(&y)?,
        };
        Ok((y, last))
    }
}

impl Fusable for CausalConv {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        sites.push(Site {
            module: at.clone(),
            kind: ModuleKind::Recurrence,
            pattern: "short_conv",
            questions: ask(primitives::ShortConv {
                channels: self.weight.dim(0),
                taps: self.weight.dim(1),
                gated: self.gated,
                bias: self.bias.is_some(),
                weight_dtype: self.weight.dtype(),
            }),
            path: &mut self.path,
            trace: None,
        });
    }
}

/// LFM2's short convolution: `out(c * conv(b * u))`, with `b`, `c` and `u` from one projection (arXiv:2511.23404).
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
    pub fn load(scope: &Scope<'_>, hidden_size: i32, kernel_size: i32, bias: bool) -> Result<Self> {
        scope.not_shared("a short convolution")?;
        let linear =
            |name: &str, width| Linear::load_with(&scope.pp(name), hidden_size, width, bias);
        Ok(Self {
            in_proj: linear("in_proj", 3 * hidden_size)?,
            conv: CausalConv::load(&scope.pp("conv"), hidden_size, kernel_size, bias, true)?,
            out_proj: linear("out_proj", hidden_size)?,
        })
    }
}

/// # Source
/// mlx-lm `lfm2.py` (`ShortConv`).
impl Mixer for ShortConv {
    fn forward(&self, x: &Array, mut rows: LayerRows<'_, '_>) -> Result<Array> {
        let bcu = self.in_proj.forward(x)?; // [B, L, 3 * D]
        let y = rows.each(1, [&bcu], |[bcu], cache| {
            let state = state_of(cache)?;
            let y = self.conv.forward(&bcu, state, 0)?;
            state.advance(bcu.dim(1));
            Ok(y)
        })?; // [B, L, D]
        self.out_proj.forward(&y)
    }

    fn make_cache(&self) -> LayerCache {
        LayerCache::State(StateCache::new(1))
    }
}

impl Fusable for ShortConv {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        self.in_proj.sites(&at.pp("in_proj"), sites);
        self.conv.sites(&at.pp("conv"), sites);
        self.out_proj.sites(&at.pp("out_proj"), sites);
    }
}

/// The recurrent state of a layer that has one.
pub(super) fn state_of(cache: &mut LayerCache) -> Result<&mut StateCache> {
    let reason = "a recurrent layer needs one of recurrent state";
    let kind = cache.kind();
    cache.as_state().ok_or_else(|| Error::argument("layer cache", kind, reason))
}
