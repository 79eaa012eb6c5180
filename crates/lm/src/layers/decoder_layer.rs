use mlx::Array;

use super::{Attention, Fusable, Mlp, ModulePath, MoeBlock, Residual, ResidualNorm, Site};
use crate::cache::{KvCache, LayerCache, WindowCache};
use crate::error::Result;
use crate::step::LayerRows;
use crate::weights::Scope;

/// What joins the tokens of each sequence in a decoder layer: attention, a convolution, a recurrence.
pub trait Mixer: Fusable {
    /// - `x`: `[B, L, D]`, normalised; returns the same shape.
    ///
    /// # Errors
    /// `Mlx`.
    fn forward(&self, x: &Array, rows: LayerRows<'_, '_>) -> Result<Array>;

    /// An empty cache of the kind that it needs.
    fn make_cache(&self) -> LayerCache {
        LayerCache::Kv(KvCache::default())
    }
}

impl Mixer for Attention {
    fn forward(&self, x: &Array, rows: LayerRows<'_, '_>) -> Result<Array> {
        Self::forward(self, x, rows)
    }

    fn make_cache(&self) -> LayerCache {
        match self.window() {
            Some(window) => LayerCache::Window(WindowCache::new(window, 0)),
            None => LayerCache::Kv(KvCache::default()),
        }
    }
}

/// For families whose layers differ in kind.
impl Mixer for Box<dyn Mixer> {
    fn forward(&self, x: &Array, rows: LayerRows<'_, '_>) -> Result<Array> {
        self.as_ref().forward(x, rows)
    }

    fn make_cache(&self) -> LayerCache {
        self.as_ref().make_cache()
    }
}

impl Fusable for Box<dyn Mixer> {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        self.as_mut().sites(at, sites);
    }
}

/// What treats every token alike in a decoder layer.
#[derive(Debug, Clone)]
pub enum FeedForward {
    /// One for all tokens.
    Dense(Box<Mlp>),
    /// Each token's own experts.
    Moe(Box<MoeBlock>),
}

impl From<Mlp> for FeedForward {
    fn from(mlp: Mlp) -> Self {
        Self::Dense(Box::new(mlp))
    }
}

impl From<MoeBlock> for FeedForward {
    fn from(moe: MoeBlock) -> Self {
        Self::Moe(Box::new(moe))
    }
}

impl FeedForward {
    /// - `x`: `[B, L, D]`; returns the same shape.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            Self::Dense(mlp) => mlp.forward(x),
            Self::Moe(moe) => moe.forward(x),
        }
    }
}

impl Fusable for FeedForward {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        match self {
            Self::Dense(mlp) => mlp.sites(at, sites),
            Self::Moe(moe) => moe.sites(at, sites),
        }
    }
}

/// What the parts of a decoder layer are called in checkpoints.
#[derive(Debug, Clone, Copy)]
pub struct LayerNames {
    /// The norm before the mixer.
    pub mixer_norm: &'static str,
    /// The mixer.
    pub mixer: &'static str,
    /// The norm before the feed-forward.
    pub feed_forward_norm: &'static str,
    /// The feed-forward.
    pub feed_forward: &'static str,
}

/// Those of LLaMA.
impl Default for LayerNames {
    fn default() -> Self {
        Self {
            mixer_norm: "input_layernorm",
            mixer: "self_attn",
            feed_forward_norm: "post_attention_layernorm",
            feed_forward: "mlp",
        }
    }
}

/// What a [`DecoderLayer`] is made of, its mixer and feed-forward apart.
#[derive(Debug, Clone, Copy)]
pub struct LayerOptions {
    /// Width of the residual stream.
    pub hidden_size: i32,
    /// Epsilon of both norms.
    pub norm_eps: f32,
    /// What its parts are called.
    pub names: LayerNames,
}

/// A pre-norm decoder layer: `h = x + mixer(norm(x))`, then `h + feed_forward(norm(h))`.
#[derive(Debug, Clone)]
pub struct DecoderLayer<M = Attention> {
    mixer_norm: ResidualNorm,
    mixer: M,
    feed_forward_norm: ResidualNorm,
    feed_forward: FeedForward,
    names: LayerNames,
}

impl<M: Mixer> DecoderLayer<M> {
    /// Takes the two norms; `mixer` and `feed_forward` take what is between them, in the scopes that they get.
    ///
    /// # Errors
    /// As [`ResidualNorm::load`]; those of `mixer` and `feed_forward`.
    pub fn load<F: Into<FeedForward>>(
        scope: &Scope<'_>,
        options: LayerOptions,
        mixer: impl FnOnce(&Scope<'_>) -> Result<M>,
        feed_forward: impl FnOnce(&Scope<'_>) -> Result<F>,
    ) -> Result<Self> {
        let LayerOptions { hidden_size, norm_eps, names } = options;
        let norm = |name| ResidualNorm::load(&scope.pp(name), hidden_size, norm_eps);
        Ok(Self {
            mixer_norm: norm(names.mixer_norm)?,
            mixer: mixer(&scope.pp(names.mixer))?,
            feed_forward_norm: norm(names.feed_forward_norm)?,
            feed_forward: feed_forward(&scope.pp(names.feed_forward))?.into(),
            names,
        })
    }

    /// The same as the first layer, before which nothing is added to the stream.
    pub fn at_start(self) -> Self {
        Self { mixer_norm: self.mixer_norm.without_sum(), ..self }
    }

    /// The stream behind this layer.
    ///
    /// # Errors
    /// `Mlx`.
    pub fn forward(&self, stream: &Residual, rows: LayerRows<'_, '_>) -> Result<Residual> {
        let (x, normed) = self.mixer_norm.forward(stream)?;
        let r = self.mixer.forward(&normed, rows)?;
        let (h, normed) = self.feed_forward_norm.forward(&Residual::sum(x, r))?;
        let r = self.feed_forward.forward(&normed)?;
        Ok(Residual::sum(h, r))
    }

    /// An empty cache of the kind that its mixer needs.
    pub fn make_cache(&self) -> LayerCache {
        self.mixer.make_cache()
    }
}

impl<M: Mixer> Fusable for DecoderLayer<M> {
    fn sites<'a>(&'a mut self, at: &ModulePath, sites: &mut Vec<Site<'a>>) {
        self.mixer_norm.sites(&at.pp(self.names.mixer_norm), sites);
        self.mixer.sites(&at.pp(self.names.mixer), sites);
        self.feed_forward_norm.sites(&at.pp(self.names.feed_forward_norm), sites);
        self.feed_forward.sites(&at.pp(self.names.feed_forward), sites);
    }
}
