//! What is told of routers and of logits.

use mlx::Dtype;

use super::fixture::{EXPERTS, Fixture, PROMPT, q4};
use crate::cache::{CacheOptions, KvQuantization};
use crate::error::Error;
use crate::generate::GenerateOptions;
use crate::logits::{Side, logit_distance};
use crate::patch::{PatchOptions, patch, sites_of};
use crate::routing::routing_histogram;

const STOCK: Side<'static> =
    Side { patch: None, cache: CacheOptions { max_kv_size: None, quantized: None } };

#[test]
fn histograms_count_every_choice_of_every_decoded_token_patched_or_not() {
    let fixture = Fixture::dense(Dtype::Bf16).quantized(q4());
    let mut loaded = fixture.load();
    let options = GenerateOptions { max_tokens: 12, ..GenerateOptions::default() };
    let stock = routing_histogram(&mut loaded, PROMPT, &options).unwrap();
    assert_eq!(stock.iter().map(|h| h.layer).collect::<Vec<_>>(), [0, 1]);
    for histogram in &stock {
        assert_eq!(histogram.tokens, 12);
        assert_eq!(histogram.counts.len(), EXPERTS as usize);
        assert_eq!(histogram.counts.iter().sum::<u64>(), 24, "two experts for each token");
        // norm_topk_prob: the weights of a token sum to one, but for their rounding
        assert!((histogram.weights.iter().sum::<f64>() - 12.0).abs() < 0.1, "{histogram:?}");
        let most = f64::from(EXPERTS).log2();
        assert!((0.0..=most).contains(&histogram.entropy_bits()), "{histogram:?}");
    }
    patch(&mut loaded, &PatchOptions::default()).unwrap();
    assert_eq!(routing_histogram(&mut loaded, PROMPT, &options).unwrap(), stock);
    let traces = sites_of(loaded.model.as_mut()).into_iter().filter_map(|site| site.trace);
    assert_eq!(traces.count(), 2);
}

#[test]
fn logits_of_exact_patches_are_those_of_stock_and_those_of_packed_caches_are_near() {
    let fixture = Fixture::dense(Dtype::Bf16).quantized(q4());
    let mut loaded = fixture.load();
    let (options, tokens) = (PatchOptions::default(), [5, 9, 33, 70]);
    let patched = Side { patch: Some(&options), ..STOCK };
    let exact = logit_distance(&mut loaded, PROMPT, &tokens, [STOCK, patched], 5).unwrap();
    assert_eq!((exact.positions, exact.max_abs, exact.mean_kl), (4, 0.0, 0.0));
    assert_eq!((exact.top_1_agreement, exact.top_k_agreement), (1.0, 1.0));
    let packed = |bits| Side {
        patch: None,
        cache: CacheOptions {
            quantized: Some(KvQuantization { bits, group_size: 32, start: 0 }),
            ..CacheOptions::default()
        },
    };
    let mut distance =
        |bits| logit_distance(&mut loaded, PROMPT, &tokens, [STOCK, packed(bits)], 5).unwrap();
    let (eight, two) = (distance(8), distance(2));
    assert!(0.0 < eight.mean_abs && eight.mean_abs < two.mean_abs, "{eight:?} {two:?}");
    assert!(eight.mean_kl < two.mean_kl, "{eight:?} {two:?}");
}

#[test]
fn nothing_to_compare_is_an_error() {
    let mut loaded = Fixture::dense(Dtype::F32).load();
    for (tokens, top_k, name) in [(&[][..], 5, "tokens"), (&[1], 0, "top_k"), (&[1], 999, "top_k")]
    {
        let error = logit_distance(&mut loaded, PROMPT, tokens, [STOCK, STOCK], top_k).unwrap_err();
        assert!(
            matches!(&error, Error::Argument { .. }) && error.to_string().contains(name),
            "{error}"
        );
    }
}
