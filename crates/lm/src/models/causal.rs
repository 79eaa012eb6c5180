//! What most families have around their decoder layers: an embedding before them, a norm and a head behind.

use mlx::{Array, Dtype};

use super::Model;
use super::family::Shape;
use crate::cache::{Cache, KvCache, LayerCache};
use crate::error::{Error, Result};
use crate::layers::{
    DecoderLayer, Embedding, Fusable, Head, Mixer, ModulePath, Residual, ResidualNorm, Site,
};
use crate::placement::{Placement, Stage};
use crate::rewrite::Rules;
use crate::step::{LayerRows, Rows, Step};
use crate::weights::Scope;

/// A decoder layer.
pub trait Block: Fusable {
    /// The stream behind this layer.
    ///
    /// # Errors
    /// `Mlx`.
    fn forward(&self, stream: &Residual, rows: LayerRows<'_, '_>) -> Result<Residual>;

    /// The same as the first layer of a model.
    #[must_use]
    fn at_start(self) -> Self;

    /// An empty cache of the kind that this layer needs.
    fn make_cache(&self) -> LayerCache {
        LayerCache::Kv(KvCache::default())
    }
}

impl<M: Mixer> Block for DecoderLayer<M> {
    fn forward(&self, stream: &Residual, rows: LayerRows<'_, '_>) -> Result<Residual> {
        Self::forward(self, stream, rows)
    }

    fn at_start(self) -> Self {
        Self::at_start(self)
    }

    fn make_cache(&self) -> LayerCache {
        Self::make_cache(self)
    }
}

/// A causal language model of decoder layers of one type.
pub struct CausalLm<B> {
    embed_tokens: Embedding,
    layers: Vec<B>,
    norm: ResidualNorm,
    head: Head,
    vocab_size: i32,
    placement: Placement,
    first_layer: usize,
    /// Where it stands in what the checkpoint holds.
    root: ModulePath,
    norm_name: &'static str,
}

impl<B: Block> CausalLm<B> {
    /// Takes, below `root`, `model.embed_tokens`, `model.layers.N` by `load`, `model.norm` and `lm_head`, which is dropped
    /// where it is tied.
    ///
    /// # Errors
    /// Those of taking weights.
    pub fn load(
        root: &Scope<'_>,
        shape: &Shape,
        load: impl FnMut(i32, Scope<'_>) -> Result<B>,
    ) -> Result<Self> {
        Self::load_named(root, shape, "norm", load)
    }

    /// The same where the norm behind the layers has another name.
    ///
    /// # Errors
    /// Those of taking weights.
    pub fn load_named(
        root: &Scope<'_>,
        shape: &Shape,
        norm_name: &'static str,
        mut load: impl FnMut(i32, Scope<'_>) -> Result<B>,
    ) -> Result<Self> {
        let Shape { hidden_size, num_layers, vocab_size, norm_eps, tied, .. } = *shape;
        if tied {
            root.rewrite(Rules::new().drop("lm_head.weight"))?;
        }
        let model = root.pp("model");
        let stage = if tied { Stage::Ends } else { Stage::First };
        let embed_tokens = model.pp("embed_tokens").at(stage, num_layers);
        let norm = model.pp(norm_name).at(Stage::Last, num_layers);
        let lm_head = root.pp("lm_head").at(Stage::Last, num_layers);
        let placement = root.placement();
        Ok(Self {
            embed_tokens: Embedding::load(&embed_tokens, vocab_size, hidden_size)?,
            layers: model.pp("layers").layers(num_layers, |i, scope| match i {
                0 => load(i, scope).map(B::at_start),
                _ => load(i, scope),
            })?,
            norm: ResidualNorm::load(&norm, hidden_size, norm_eps)?,
            head: Head::load(&lm_head, hidden_size, vocab_size, tied)?,
            vocab_size,
            first_layer: placement.layers_of(num_layers as usize)?.start,
            placement: placement.clone(),
            root: ModulePath::default().pp(root.path()),
            norm_name,
        })
    }
}

impl<B: Block> Model for CausalLm<B> {
    fn forward(&self, step: &Step<'_>, caches: &mut [&mut Cache]) -> Result<Array> {
        if !self.placement.is_whole() {
            let reason = "a part of a model cannot run by itself";
            return Err(Error::argument("placement", format!("{:?}", self.placement), reason));
        }
        let mut rows = Rows::new(step, caches);
        let mut stream = Residual::new(self.embed_tokens.forward(step.tokens)?); // [B, L, D]
        for (i, layer) in self.layers.iter().enumerate() {
            stream = layer.forward(&stream, rows.layer(i))?;
        }
        let (_, h) = self.norm.forward(&stream.select(|x| step.wanted(x))?)?;
        self.head.forward(&h, &self.embed_tokens)
    }

    fn make_cache(&self) -> Cache {
        Cache { layers: self.layers.iter().map(Block::make_cache).collect() }
    }

    fn vocab_size(&self) -> u32 {
        self.vocab_size as u32
    }

    fn activation_dtype(&self) -> Result<Dtype> {
        let h = self.embed_tokens.forward(&Array::from_slice(&[0_u32], &[1, 1])?)?;
        Ok(self.norm.norm().forward(&h)?.dtype())
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn sites<'a>(&'a mut self, sites: &mut Vec<Site<'a>>) {
        let cache = self.make_cache();
        let model = self.root.pp("model");
        let layers = model.pp("layers");
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer.sites(&layers.layer(self.first_layer + i), sites);
        }
        self.norm.sites(&model.pp(self.norm_name), sites);
        let embedding = (&model.pp("embed_tokens"), &mut self.embed_tokens);
        self.head.sites_with(&self.root.pp("lm_head"), embedding, &cache, sites);
    }
}
