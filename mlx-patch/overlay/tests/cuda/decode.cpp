// Decode of a model of the shape of Qwen3-30B-A3B with random weights, through MLX: on stock ops and with every primitive of
// ours that has a CUDA kernel, in turns in one process. Both read the same prompt and have to say the same tokens.
//
//   decode [--layers N] [--tokens N]

#include <algorithm>
#include <chrono>

#include "mlx/backend/gpu/device_info.h"
#include "tests/arrays.h"

using namespace zmlx::tests;
using zmlx::QuantizedWeight;

namespace {

constexpr int kHidden = 2048, kHeads = 32, kKvHeads = 4, kHeadDim = 128, kExperts = 128, kTopK = 8, kExpertSize = 768;
constexpr int kVocab = 151936, kContext = 1024, kPrompt = 64;
constexpr float kEps = 1e-6f, kBase = 1e6f;

array normal(mx::Shape shape, float scale) {
  return mx::astype(mx::random::normal(shape) * array(scale), mx::bfloat16);
}

QuantizedWeight quantized(mx::Shape shape) {
  auto parts = mx::quantize(normal(shape, 0.03f), 64, 4);
  mx::eval(parts);
  return {parts[0], parts[1], parts[2]};
}

array norm_weight(int size) {
  auto w = array(1.0f, mx::bfloat16) + normal({size}, 0.1f);
  mx::eval(w);
  return w;
}

struct Layer {
  array input_norm = norm_weight(kHidden), post_norm = norm_weight(kHidden);
  array q_norm = norm_weight(kHeadDim), k_norm = norm_weight(kHeadDim);
  QuantizedWeight q = quantized({kHeads * kHeadDim, kHidden});
  QuantizedWeight k = quantized({kKvHeads * kHeadDim, kHidden});
  QuantizedWeight v = quantized({kKvHeads * kHeadDim, kHidden});
  QuantizedWeight o = quantized({kHidden, kHeads * kHeadDim});
  QuantizedWeight router = quantized({kExperts, kHidden});
  QuantizedWeight gate = quantized({kExperts, kExpertSize, kHidden});
  QuantizedWeight up = quantized({kExperts, kExpertSize, kHidden});
  QuantizedWeight down = quantized({kExperts, kHidden, kExpertSize});
};

struct Cache {
  array keys = mx::zeros({1, kKvHeads, kContext, kHeadDim}, mx::bfloat16);
  array values = mx::zeros({1, kKvHeads, kContext, kHeadDim}, mx::bfloat16);
};

array matmul(const array& x, const QuantizedWeight& w) {
  return mx::quantized_matmul(x, w.w, w.scales, w.biases, true, 64, 4);
}

array gather(const array& x, const QuantizedWeight& w, const array& experts) {
  return mx::gather_qmm(x, w.w, w.scales, w.biases, std::nullopt, experts, true, 64, 4);
}

class Model {
 public:
  explicit Model(int layers) : layers_(layers) {}

  // The token after `token` [1, 1], at `position`.
  array step(const array& token, int position, std::vector<Cache>& caches, bool fused) const {
    auto h = mx::take(embedding_, token, 0);
    auto normed = mx::fast::rms_norm(h, layers_[0].input_norm, kEps);
    for (size_t i = 0; i < layers_.size(); i++) {
      auto& layer = layers_[i];
      auto mixed = attention(layer, caches[i], normed, position, fused);
      std::tie(h, normed) = add_norm(h, mixed, layer.post_norm, fused);
      auto& next = i + 1 < layers_.size() ? layers_[i + 1].input_norm : norm_;
      std::tie(h, normed) = add_norm(h, experts(layer, normed, fused), next, fused);
    }
    return mx::argmax(matmul(normed, head_), -1);
  }

  size_t size() const {
    return layers_.size();
  }

 private:
  static std::pair<array, array> add_norm(const array& x, const array& r, const array& weight, bool fused) {
    if (fused) {
      return zmlx::add_rms_norm(x, r, weight, kEps);
    }
    auto sum = x + r;
    return {sum, mx::fast::rms_norm(sum, weight, kEps)};
  }

  static array heads(const array& x, int num_heads, const array& weight, int position, bool fused) {
    if (fused) {
      return zmlx::qk_norm_rope(x, num_heads, weight, kEps, {kHeadDim, false, kBase, 1.0f, std::nullopt}, array(position));
    }
    auto y = mx::fast::rms_norm(mx::reshape(x, {1, 1, num_heads, kHeadDim}), weight, kEps);
    return mx::fast::rope(mx::transpose(y, {0, 2, 1, 3}), kHeadDim, false, kBase, 1.0f, position);
  }

  static array attention(const Layer& layer, Cache& cache, const array& x, int position, bool fused) {
    auto q = heads(matmul(x, layer.q), kHeads, layer.q_norm, position, fused);
    auto k = heads(matmul(x, layer.k), kKvHeads, layer.k_norm, position, fused);
    auto v = mx::transpose(mx::reshape(matmul(x, layer.v), {1, 1, kKvHeads, kHeadDim}), {0, 2, 1, 3});
    mx::Shape start = {0, 0, position, 0}, stop = {1, kKvHeads, position + 1, kHeadDim};
    cache.keys = mx::slice_update(cache.keys, k, start, stop);
    cache.values = mx::slice_update(cache.values, v, start, stop);
    auto keys = mx::slice(cache.keys, {0, 0, 0, 0}, stop), values = mx::slice(cache.values, {0, 0, 0, 0}, stop);
    auto out = mx::fast::scaled_dot_product_attention(q, keys, values, 1 / std::sqrt(float(kHeadDim)));
    return matmul(mx::reshape(mx::transpose(out, {0, 2, 1, 3}), {1, 1, kHeads * kHeadDim}), layer.o);
  }

  static array experts(const Layer& layer, const array& x, bool fused) {
    auto logits = matmul(x, layer.router);
    auto in = mx::expand_dims(x, {-2, -3});
    if (fused) {
      zmlx::RouterParams params = {kTopK, "softmax"};
      params.normalize = true;
      auto [indices, scores] = zmlx::moe_router(logits, params, std::nullopt, std::nullopt);
      auto exact = zmlx::Precision::Exact;
      auto y = zmlx::gather_qmm_swiglu(
          in, {layer.gate, layer.up}, {}, std::nullopt, indices, true, 64, 4, "affine", false, exact);
      return zmlx::gather_qmm_combine(y, layer.down, std::nullopt, indices, scores, 64, 4, "affine", exact);
    }
    auto gates = mx::softmax(logits, -1, true);
    auto indices = mx::slice(mx::argpartition(gates, -kTopK, -1), {0, 0, kExperts - kTopK}, {1, 1, kExperts});
    auto scores = mx::take_along_axis(gates, indices, -1);
    scores = scores / mx::sum(scores, -1, true);
    auto gate = gather(in, layer.gate, indices);
    auto y = gather(gate * mx::sigmoid(gate) * gather(in, layer.up, indices), layer.down, indices);
    return mx::sum(mx::squeeze(y, -2) * mx::expand_dims(scores, -1), -2);
  }

  std::vector<Layer> layers_;
  array embedding_ = normal({kVocab, kHidden}, 1);
  array norm_ = norm_weight(kHidden);
  QuantizedWeight head_ = quantized({kVocab, kHidden});
};

struct Run {
  std::vector<uint32_t> tokens;
  double tokens_per_second;
};

Run decode(const Model& model, int tokens, bool fused) {
  std::vector<Cache> caches(model.size());
  int position = 0;
  auto token = array(0, mx::uint32);
  for (; position < kPrompt; position++) {
    token = model.step(mx::reshape(array(uint32_t(100 + position)), {1, 1}), position, caches, fused);
    mx::eval(token);
  }
  Run run;
  mx::synchronize();
  auto begin = std::chrono::steady_clock::now();
  // the next step is built and started before this one's token is read, as generation does it
  for (int i = 0; i < tokens; i++) {
    auto next = model.step(mx::reshape(token, {1, 1}), position++, caches, fused);
    mx::async_eval({next});
    run.tokens.push_back(token.item<uint32_t>());
    token = next;
  }
  mx::eval(token);
  run.tokens_per_second = tokens / std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return run;
}

} // namespace

int main(int argc, char** argv) {
  int layers = 48, tokens = 128;
  read_options(argc, argv, [&](auto& option, auto value) {
    (option == "--layers" ? layers : tokens) = std::atoi(value);
    return 1;
  });
  if (!mx::gpu::is_available()) {
    std::printf("SKIPPED: there is no GPU\n");
    return 0;
  }
  mx::set_default_device(mx::Device::gpu);
  mx::random::seed(1);
  Model model(layers);
  decode(model, 8, false);
  decode(model, 8, true);
  for (int round = 0; round < 3; round++) {
    auto stock = decode(model, tokens, false), fused = decode(model, tokens, true), again = decode(model, tokens, false);
    int differ = 0, unstable = 0;
    for (int i = 0; i < tokens; i++) {
      cases++;
      differ += stock.tokens[i] != fused.tokens[i];
      unstable += stock.tokens[i] != again.tokens[i];
    }
    failures += differ;
    std::printf(
        "%d layers, %d tokens: stock %.1f and %.1f tok/s, fused %.1f tok/s; %d tokens differ, stock differs from itself in %d\n",
        layers, tokens, stock.tokens_per_second, again.tokens_per_second, fused.tokens_per_second, differ, unstable);
    std::fflush(nullptr);
  }
  int outcome = finish();
  std::fflush(nullptr);
  std::_Exit(outcome);
}
