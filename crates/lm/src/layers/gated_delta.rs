use mlx::primitives::{self, GatedDeltaInputs};
use mlx::{Array, Dtype, fast, ops};

use super::short_conv::{CausalConv, state_of};
use super::site::ask;
use super::{Fusable, Linear, Mixer, ModuleKind, ModulePath, Path, RmsNorm, Site};
use crate::cache::{LayerCache, StateCache};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::step::LayerRows;
use crate::weights::Scope;

/// Added to the sum of squares that queries and keys are divided by the root of.
const QK_EPS: f64 = 1e-6;
/// Arrays of the state: the convolution's last inputs, and the memory.
const CONV: usize = 0;
const MEMORY: usize = 1;

/// Sizes of a [`GatedDeltaNet`].
#[derive(Debug, Clone, Copy)]
pub struct GatedDeltaOptions {
    /// Width of the residual stream.
    pub hidden_size: i32,
    /// Query and key heads.
    pub num_key_heads: i32,
    /// Value heads, several of which may share a query and key head.
    pub num_value_heads: i32,
    /// Width of a query or key head.
    pub key_dim: i32,
    /// Width of a value head.
    pub value_dim: i32,
    /// Tokens that the convolution before it sees.
    pub kernel_size: i32,
    /// Epsilon of the norm behind it.
    pub norm_eps: f32,
    /// How the projections of its inputs are stored.
    pub projections: GatedDeltaProjections,
}

/// How the projections of queries, keys, values, output gate `z`, strength `b` and decay `a` are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatedDeltaProjections {
    /// `in_proj_qkv`, `in_proj_z`, `in_proj_b` and `in_proj_a`.
    Apart,
    /// `in_proj_qkvz` and `in_proj_ba`: for each key head its queries, keys, values and gates, and so for `b` and `a`.
    ByKeyHead,
}

impl GatedDeltaOptions {
    /// Whether the sizes fit together; `config` is named in errors.
    ///
    /// # Errors
    /// `Config`.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let Self { num_key_heads, num_value_heads, kernel_size, .. } = *self;
        if num_value_heads % num_key_heads != 0 {
            let reason = format!(
                "is {num_value_heads}, no multiple of linear_num_key_heads ({num_key_heads})"
            );
            return Err(config.error("linear_num_value_heads", reason));
        }
        if kernel_size < 2 {
            let reason = format!("is {kernel_size}, expected 2 or more");
            return Err(config.error("linear_conv_kernel_dim", reason));
        }
        let widths = (self.value_dim.checked_mul(num_value_heads))
            .zip(self.key_dim.checked_mul(num_key_heads).and_then(|k| k.checked_mul(2)))
            .and_then(|(v, k)| v.checked_mul(2)?.checked_add(k));
        match widths {
            Some(_) => Ok(()),
            None => Err(config.error("linear_num_value_heads", "makes projections too wide")),
        }
    }

    /// Width of all query heads.
    fn keys_width(&self) -> i32 {
        self.num_key_heads * self.key_dim
    }

    /// Width of all value heads.
    fn values_width(&self) -> i32 {
        self.num_value_heads * self.value_dim
    }
}

/// What the projections make of a step's tokens.
struct Inputs {
    /// Queries, keys and values of all heads, before or behind the convolution, `[B, L, 2 * H_k * D_k + H_v * D_v]`.
    qkv: Array,
    /// Gates of the output, `[B, L, H_v, D_v]`.
    z: Array,
    /// Before the sigmoid, how much of a value is written, `[B, L, H_v]`.
    b: Array,
    /// How much of the memory is kept, likewise.
    a: Array,
}

#[derive(Debug, Clone)]
enum Projections {
    Apart { qkv: Box<Linear>, z: Box<Linear>, b: Box<Linear>, a: Box<Linear> },
    ByKeyHead { qkvz: Box<Linear>, ba: Box<Linear> },
}

impl Projections {
    fn load(scope: &Scope<'_>, options: &GatedDeltaOptions) -> Result<Self> {
        let (keys, values) = (options.keys_width(), options.values_width());
        let heads = options.num_value_heads;
        let linear = |name: &str, width| {
            Linear::load(&scope.pp(name), options.hidden_size, width).map(Box::new)
        };
        Ok(match options.projections {
            GatedDeltaProjections::Apart => Self::Apart {
                qkv: linear("in_proj_qkv", 2 * keys + values)?,
                z: linear("in_proj_z", values)?,
                b: linear("in_proj_b", heads)?,
                a: linear("in_proj_a", heads)?,
            },
            GatedDeltaProjections::ByKeyHead => Self::ByKeyHead {
                qkvz: linear("in_proj_qkvz", 2 * keys + 2 * values)?,
                ba: linear("in_proj_ba", 2 * heads)?,
            },
        })
    }

    fn forward(&self, x: &Array, options: &GatedDeltaOptions) -> Result<Inputs> {
        let (batch, l) = (x.dim(0), x.dim(1));
        let z_shape = [batch, l, options.num_value_heads, options.value_dim];
        match self {
            Self::Apart { qkv, z, b, a } => Ok(Inputs {
                qkv: qkv.forward(x)?,
                z: z.forward(x)?.reshape(&z_shape)?,
                b: b.forward(x)?,
                a: a.forward(x)?,
            }),
            Self::ByKeyHead { qkvz, ba } => {
                let heads = options.num_key_heads;
                let (dk, dv) = (options.key_dim, options.values_width() / heads);
                let shared = options.num_value_heads / heads;
                let by_head = |x: Array| x.reshape(&[batch, l, heads, -1]);
                let (qkvz, ba) = (by_head(qkvz.forward(x)?)?, by_head(ba.forward(x)?)?);
                let part = |x: &Array, from, to| {
                    ops::slice_axis(x, -1, from, to)?.reshape(&[batch, l, -1])
                };
                let q = part(&qkvz, 0, dk)?;
                let k = part(&qkvz, dk, 2 * dk)?;
                let v = part(&qkvz, 2 * dk, 2 * dk + dv)?;
                Ok(Inputs {
                    qkv: ops::concatenate(&[q, k, v], -1)?,
                    z: part(&qkvz, 2 * dk + dv, 2 * dk + 2 * dv)?.reshape(&z_shape)?,
                    b: part(&ba, 0, shared)?,
                    a: part(&ba, shared, 2 * shared)?,
                })
            }
        }
    }
}

impl Fusable for Projections {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        match self {
            Self::Apart { qkv, z, b, a } => {
                qkv.sites(&at.pp("in_proj_qkv"), sites);
                z.sites(&at.pp("in_proj_z"), sites);
                b.sites(&at.pp("in_proj_b"), sites);
                a.sites(&at.pp("in_proj_a"), sites);
            }
            Self::ByKeyHead { qkvz, ba } => {
                qkvz.sites(&at.pp("in_proj_qkvz"), sites);
                ba.sites(&at.pp("in_proj_ba"), sites);
            }
        }
    }
}

/// Gated DeltaNet (arXiv:2412.06464): a memory of each head, to which every token writes the difference between its
/// value and what its key finds there, and which fades.
#[derive(Debug, Clone)]
pub struct GatedDeltaNet {
    projections: Projections,
    conv: CausalConv,
    a_log: Array,
    dt_bias: Array,
    norm: RmsNorm,
    out_proj: Linear,
    options: GatedDeltaOptions,
    path: Path,
}

impl GatedDeltaNet {
    /// Takes the projections, `conv1d`, `A_log`, `dt_bias`, `norm` and `out_proj`.
    ///
    /// # Errors
    /// As [`Linear::load`]; `Checkpoint` when ranks are to share it.
    pub fn load(scope: &Scope<'_>, options: GatedDeltaOptions) -> Result<Self> {
        scope.not_shared("a gated delta rule")?;
        let (keys, values) = (options.keys_width(), options.values_width());
        let GatedDeltaOptions { hidden_size, num_value_heads, value_dim, .. } = options;
        let (channels, kernel_size) = (2 * keys + values, options.kernel_size);
        Ok(Self {
            projections: Projections::load(scope, &options)?,
            conv: CausalConv::load(&scope.pp("conv1d"), channels, kernel_size, false, false)?,
            a_log: scope.take_float("A_log", &[num_value_heads])?.astype(Dtype::F32)?,
            dt_bias: scope.take_float("dt_bias", &[num_value_heads])?,
            norm: RmsNorm::load(&scope.pp("norm"), value_dim, options.norm_eps)?,
            out_proj: Linear::load(&scope.pp("out_proj"), values, hidden_size)?,
            options,
            path: Path::Stock,
        })
    }

    /// What the memory says to each token's query, after the token wrote to it, normalised under its gate:
    /// `[B, L, H_v, D_v]`.
    fn recur(&self, inputs: &Inputs, state: &mut StateCache) -> Result<Array> {
        let GatedDeltaOptions { num_value_heads, key_dim, value_dim, .. } = self.options;
        let before = match state.take(MEMORY) {
            Some(before) => before,
            None => {
                let shape = [inputs.qkv.dim(0), num_value_heads, value_dim, key_dim];
                ops::zeros(&shape, Dtype::F32)?
            }
        };
        let (y, memory) = match self.path {
            Path::Stock => {
                let (y, memory) = self.stock(inputs, before)?;
                // the gate is applied in float32
                let gate = ops::silu(&inputs.z.astype(Dtype::F32)?)?;
                let normed = self.norm.forward(&y)?.astype(Dtype::F32)?;
                (ops::multiply(&gate, &normed)?.astype(y.dtype())?, memory)
            }
            Path::Fused(_) => {
                let Inputs { qkv, z, b, a } = inputs;
                let (norm, eps) = self.norm.parts();
                let (a_log, dt_bias) = (&self.a_log, &self.dt_bias);
                let inputs = GatedDeltaInputs { qkv, z, b, a, a_log, dt_bias, norm };
                primitives::gated_delta(&inputs, before, eps)?
            }
        };
        state.set(MEMORY, memory);
        Ok(y)
    }

    /// The rule by itself: `[B, L, H_v, D_v]`, and the memory after the last token.
    fn stock(&self, inputs: &Inputs, mut memory: Array) -> Result<(Array, Array)> {
        let Inputs { qkv, b, a, .. } = inputs;
        let l = qkv.dim(1);
        let [q, k, v] = self.heads(qkv)?;
        let beta = ops::sigmoid(b)?;
        let decay = self.decay(a)?;
        let mut ys = Vec::with_capacity(l as usize);
        for t in 0..l {
            let at = |x: &Array| ops::squeeze(&ops::slice_axis(x, 1, t, t + 1)?, &[1]);
            let (q, k, v) = (at(&q)?, at(&k)?, at(&v)?); // [B, H_v, D_k], [B, H_v, D_v]
            let (k, q) = (ops::expand_dims(&k, &[-2])?, ops::expand_dims(&q, &[-2])?);
            let decay = ops::expand_dims(&at(&decay)?, &[-1, -2])?;
            let kept = ops::multiply(&memory, &decay)?; // [B, H_v, D_v, D_k]
            let found = ops::sum(&ops::multiply(&kept, &k)?, &[-1], false)?; // [B, H_v, D_v]
            let delta = ops::subtract(&v, &found)?;
            let delta = ops::multiply(&delta, &ops::expand_dims(&at(&beta)?, &[-1])?)?;
            let written = ops::multiply(&k, &ops::expand_dims(&delta, &[-1])?)?;
            memory = ops::add(&kept, &written)?;
            let y = ops::sum(&ops::multiply(&memory, &q)?, &[-1], false)?;
            ys.push(y.astype(q.dtype())?);
        }
        Ok((ops::stack(&ys, 1)?, memory))
    }

    /// Queries and keys, normalised and repeated for the value heads that share them, and values.
    fn heads(&self, qkv: &Array) -> Result<[Array; 3]> {
        let GatedDeltaOptions { num_key_heads, num_value_heads, key_dim, value_dim, .. } =
            self.options;
        let keys = self.options.keys_width();
        let heads = |from, to, heads, dim| {
            ops::slice_axis(qkv, -1, from, to)?.reshape(&[qkv.dim(0), qkv.dim(1), heads, dim])
        };
        // in f64 as Python computes them; the epsilon counts in a mean here
        let inv_scale = f64::from(key_dim).powf(-0.5);
        let eps = (QK_EPS * inv_scale.powi(2)) as f32;
        let normed = |x: &Array, scale: f64| {
            let x = fast::rms_norm(x, None, eps)?;
            let x = ops::multiply(&Array::scalar_like(scale as f32, &x)?, &x)?;
            match num_value_heads / num_key_heads {
                1 => Ok(x),
                shared => ops::repeat(&x, shared, -2),
            }
        };
        let q = heads(0, keys, num_key_heads, key_dim)?;
        let k = heads(keys, 2 * keys, num_key_heads, key_dim)?;
        let v = heads(2 * keys, qkv.dim(-1), num_value_heads, value_dim)?;
        Ok([normed(&q, inv_scale.powi(2))?, normed(&k, inv_scale)?, v])
    }

    /// What each head keeps of its memory, `exp(-exp(A_log) * softplus(a + dt_bias))`, in float32 but for the softplus.
    fn decay(&self, a: &Array) -> Result<Array> {
        let a = ops::add(a, &self.dt_bias)?;
        let softplus = ops::logaddexp(&a, &Array::scalar_like(0.0, &a)?)?;
        let rate = ops::negative(&ops::exp(&self.a_log.astype(Dtype::F32)?)?)?;
        Ok(ops::exp(&ops::multiply(&rate, &softplus)?)?)
    }
}

/// # Source
/// mlx-lm `qwen3_next.py` (`Qwen3NextGatedDeltaNet`), `gated_delta.py` without kernels for a GPU.
impl Mixer for GatedDeltaNet {
    fn forward(&self, x: &Array, mut rows: LayerRows<'_, '_>) -> Result<Array> {
        let Inputs { qkv, z, b, a } = self.projections.forward(x, &self.options)?;
        let y = rows.each(1, [&qkv, &z, &b, &a], |[qkv, z, b, a], cache| {
            let state = state_of(cache)?;
            let qkv = self.conv.forward(&qkv, state, CONV)?;
            let l = qkv.dim(1);
            let y = self.recur(&Inputs { qkv, z, b, a }, state)?;
            state.advance(l);
            Ok(y)
        })?; // [B, L, H_v, D_v]
        self.out_proj.forward(&y.reshape(&[y.dim(0), y.dim(1), -1])?)
    }

    fn make_cache(&self) -> LayerCache {
        LayerCache::State(StateCache::new(2))
    }
}

impl Fusable for GatedDeltaNet {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        let GatedDeltaOptions { num_key_heads, num_value_heads, key_dim, value_dim, .. } =
            self.options;
        let question = primitives::GatedDelta {
            num_key_heads,
            num_value_heads,
            key_dim,
            value_dim,
            dt_bias_dtype: self.dt_bias.dtype(),
            norm_dtype: self.norm.parts().0.dtype(),
        };
        self.projections.sites(at, sites);
        self.conv.sites(&at.pp("conv1d"), sites);
        sites.push(Site {
            module: at.clone(),
            kind: ModuleKind::Recurrence,
            pattern: "gated_delta",
            questions: ask(question),
            path: &mut self.path,
            trace: None,
        });
        self.norm.sites(&at.pp("norm"), sites);
        self.out_proj.sites(&at.pp("out_proj"), sites);
    }
}
