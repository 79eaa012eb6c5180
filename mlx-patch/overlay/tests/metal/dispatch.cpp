// Runs the Metal backends' host code against the recorder and prints each launch as one line of JSON, for
// mlx-sys/tests/metal_dispatch.rs, which holds it against the kernels' own words: names, buffers, grid.
//
//   {"case":..,"primitive":..,"kernel":..,"instance":..,"ascii":bool,"grid":[..],"group":[..],"inputs":[..],"outputs":[..],"bytes":[..]}

#include <algorithm>
#include <cstdio>
#include <memory>

#include "add_rms_norm/add_rms_norm.h"
#include "gather_qmm_combine/gather_qmm_combine.h"
#include "gather_qmm_swiglu/gather_qmm_swiglu.h"
#include "mlx/mlx.h"
#include "moe_router/moe_router.h"
#include "qk_norm_rope/qk_norm_rope.h"
#include "recorder.h"
#include "swiglu_mlp/swiglu_mlp.h"
#include "zmlx/primitives.h"

namespace zmlx {
GpuBackend add_rms_norm_gpu();
GpuBackend gather_qmm_combine_gpu();
GpuBackend gather_qmm_swiglu_gpu();
GpuBackend moe_router_gpu();
GpuBackend qk_norm_rope_gpu();
GpuBackend swiglu_mlp_gpu();
} // namespace zmlx

namespace {

using namespace mlx::core;
using zmlx::Precision;
using zmlx::QuantizationMode;

int failures = 0;

void print_size(const char* name, MTL::Size size) {
  std::printf(",\"%s\":[%zu,%zu,%zu]", name, size_t(size.width), size_t(size.height), size_t(size.depth));
}

template <typename Wanted>
void print_indices(const char* name, const recorder::Launch& launch, Wanted wanted) {
  std::printf(",\"%s\":[", name);
  const char* comma = "";
  for (auto& [index, argument] : launch.arguments) {
    if (wanted(argument)) {
      std::printf("%s%d", comma, index);
      comma = ",";
    }
  }
  std::printf("]");
}

void print(const std::string& what, const char* primitive, const recorder::Launch& launch) {
  auto& source = launch.source;
  bool ascii = std::all_of(source.begin(), source.end(), [](char c) { return c >= 0 && c < 127; });
  // the last line is the one instance that is asked for
  auto end = source.find_last_not_of('\n');
  auto begin = source.rfind('\n', end) + 1;
  auto line = source.substr(begin, end - begin + 1);
  std::string escaped;
  for (char c : line) {
    escaped += c == '"' ? std::string("\\\"") : std::string(1, c);
  }
  std::printf(
      "{\"case\":\"%s\",\"primitive\":\"%s\",\"kernel\":\"%s\",\"instance\":\"%s\",\"ascii\":%s",
      what.c_str(),
      primitive,
      launch.kernel.c_str(),
      escaped.c_str(),
      ascii ? "true" : "false");
  print_size("grid", launch.grid);
  print_size("group", launch.group);
  print_indices("inputs", launch, [](auto& a) { return a.buffer && !a.is_output; });
  print_indices("outputs", launch, [](auto& a) { return a.is_output; });
  print_indices("bytes", launch, [](auto& a) { return !a.buffer; });
  std::printf("}\n");
}

// Evaluates the node on the stand-in and prints its one launch.
void launch(const std::string& what, const char* primitive, const zmlx::GpuBackend& backend, std::vector<array> outputs) {
  auto inputs = outputs[0].inputs();
  for (auto& in : inputs) {
    in.eval();
  }
  backend.eval(outputs[0].primitive(), inputs, outputs);
  auto launches = recorder::take();
  if (launches.size() != 1) {
    std::fprintf(stderr, "%s: %zu launches\n", what.c_str(), launches.size());
    failures++;
    return;
  }
  print(what, primitive, launches[0]);
}

const Stream& gpu() {
  static const Stream s(0, Device::gpu);
  return s;
}

struct Format {
  const char* mode;
  QuantizationMode kind;
  int group_size;
  int bits;
};

std::vector<Format> formats() {
  std::vector<Format> all = {
      {"mxfp4", QuantizationMode::Mxfp4, 32, 4},
      {"mxfp8", QuantizationMode::Mxfp8, 32, 8},
      {"nvfp4", QuantizationMode::Nvfp4, 16, 4}};
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int group_size : {32, 64, 128}) {
      all.push_back({"affine", QuantizationMode::Affine, group_size, bits});
    }
  }
  return all;
}

std::vector<Dtype> dtypes() {
  return {float32, float16, bfloat16};
}

// Packed matrices of this shape, [.., N, K]: w, scales and, for affine, biases.
std::vector<array> packed(const Format& f, Dtype dtype, Shape shape) {
  bool affine = f.kind == QuantizationMode::Affine;
  auto words = shape, groups = shape;
  words.back() = shape.back() * f.bits / 32;
  groups.back() = shape.back() / f.group_size;
  std::vector<array> parts = {zeros(words, uint32), zeros(groups, affine ? dtype : uint8)};
  if (affine) {
    parts.push_back(zeros(groups, dtype));
  }
  return parts;
}

std::string label(const Format& f, Dtype dtype, int N, int K) {
  std::ostringstream out;
  out << f.mode << " " << f.bits << " " << f.group_size << " " << dtype << " N=" << N << " K=" << K;
  return out.str();
}

// Each of these makes both, with a bias of the experts and without.
constexpr std::pair<int, int> kSizes[] = {{16, 1024}, {12, 1024}, {16, 1152}};

void gather_qmm_swiglu() {
  auto backend = zmlx::gather_qmm_swiglu_gpu();
  constexpr int E = 4, top_k = 2;
  for (auto& f : formats()) {
    for (auto dtype : dtypes()) {
      for (auto [N, K] : kSizes) {
        auto gate = packed(f, dtype, {E, N, K});
        auto up = packed(f, dtype, {E, N, K});
        std::vector<array> inputs = {
            zeros({1, 1, 1, K}, dtype),
            broadcast_to(array(0u, uint32), {1, top_k}),
            zeros({1, top_k}, uint32),
            gate[0],
            gate[1],
            up[0],
            up[1]};
        if (gate.size() == 3) {
          inputs.push_back(gate[2]);
          inputs.push_back(up[2]);
        }
        for (bool has_bias : {false, true}) {
          if (has_bias) {
            inputs.insert(inputs.end(), 2, zeros({E, N}, dtype));
          }
          zmlx::GatherQMMSwiGLU::State state = {
              f.group_size, f.bits, f.kind, true, false, Precision::Exact, zmlx::Activation::Silu, 0, 0, has_bias};
          auto primitive = std::make_shared<zmlx::GatherQMMSwiGLU>(gpu(), state);
          auto out = array({1, top_k, 1, N}, dtype, primitive, inputs);
          launch(label(f, dtype, N, K), "gather_qmm_swiglu", backend, {out});
        }
      }
    }
  }
}

void gather_qmm_combine() {
  auto backend = zmlx::gather_qmm_combine_gpu();
  constexpr int E = 4, tokens = 2, top_k = 3;
  for (auto& f : formats()) {
    for (auto dtype : dtypes()) {
      for (auto [N, K] : kSizes) {
        auto down = packed(f, dtype, {E, N, K});
        std::vector<array> inputs = {
            zeros({tokens, top_k, 1, K}, dtype), zeros({tokens, top_k}, uint32), zeros({tokens, top_k}, float32)};
        inputs.insert(inputs.end(), down.begin(), down.end());
        for (bool has_bias : {false, true}) {
          if (has_bias) {
            inputs.push_back(zeros({E, N}, dtype));
          }
          auto primitive = std::make_shared<zmlx::GatherQMMCombine>(
              gpu(), f.group_size, f.bits, f.kind, Precision::Exact, has_bias);
          launch(label(f, dtype, N, K), "gather_qmm_combine", backend, {array({tokens, N}, dtype, primitive, inputs)});
        }
      }
    }
  }
}

void moe_router() {
  using P = zmlx::MoERouter;
  auto backend = zmlx::moe_router_gpu();
  constexpr int E = 160, tokens = 3, top_k = 6;
  for (auto dtype : dtypes()) {
    for (auto weights : dtypes()) {
      for (bool in_f32 : {false, true}) {
        for (bool has_bias : {false, true}) {
          std::vector<array> inputs = {zeros({1, tokens, E}, dtype)};
          if (has_bias) {
            inputs.push_back(zeros({E}, float32));
          }
          P::State state = {
              top_k, zmlx::RouterScoring::Sigmoid, true, false, in_f32, has_bias, 1, 1, true, 0, false, 1, weights.val()};
          Shape shape = {1, tokens, top_k};
          auto outputs = array::make_arrays(
              {shape, shape}, {uint32, weights}, std::make_shared<P>(gpu(), state), std::move(inputs));
          std::ostringstream what;
          what << dtype << " " << weights << " in_f32=" << in_f32 << " bias=" << has_bias;
          launch(what.str(), "moe_router", backend, std::move(outputs));
        }
      }
    }
  }
}

void qk_norm_rope() {
  auto backend = zmlx::qk_norm_rope_gpu();
  constexpr int B = 2, L = 3, H = 4, D = 96;
  for (auto dtype : dtypes()) {
    for (bool has_weight : {false, true}) {
      for (bool has_freqs : {false, true}) {
        std::vector<array> inputs = {zeros({B, L, H * D}, dtype), array(7)};
        if (has_weight) {
          inputs.push_back(zeros({D}, dtype));
        }
        if (has_freqs) {
          inputs.push_back(zeros({D / 2}, float32));
        }
        zmlx::QKNormRope::State state = {H, has_weight, has_freqs, 1e-5f, D, false, 1e4f, 1, 1};
        auto primitive = std::make_shared<zmlx::QKNormRope>(gpu(), state);
        std::ostringstream what;
        what << dtype << " weight=" << has_weight << " freqs=" << has_freqs;
        launch(what.str(), "qk_norm_rope", backend, {array({B, H, L, D}, dtype, primitive, inputs)});
      }
    }
  }
}

void add_rms_norm() {
  auto backend = zmlx::add_rms_norm_gpu();
  for (auto dtype : dtypes()) {
    for (int D : {64, 4096}) {
      Shape shape = {2, 3, D};
      std::vector<array> inputs = {zeros(shape, dtype), zeros(shape, dtype), zeros({D}, dtype)};
      auto outputs = array::make_arrays(
          {shape, shape}, {dtype, dtype}, std::make_shared<zmlx::AddRMSNorm>(gpu(), 1e-5f), std::move(inputs));
      std::ostringstream what;
      what << dtype << " D=" << D;
      launch(what.str(), "add_rms_norm", backend, std::move(outputs));
    }
  }
}

void swiglu_mlp() {
  auto backend = zmlx::swiglu_mlp_gpu();
  for (auto& f : formats()) {
    for (auto dtype : dtypes()) {
      for (auto [N, K] : kSizes) {
        auto gate = packed(f, dtype, {N, K});
        auto up = packed(f, dtype, {N, K});
        std::vector<array> inputs = {zeros({1, 1, K}, dtype), gate[0], gate[1], up[0], up[1]};
        if (gate.size() == 3) {
          inputs.push_back(gate[2]);
          inputs.push_back(up[2]);
        }
        for (bool has_bias : {false, true}) {
          if (has_bias) {
            inputs.insert(inputs.end(), 2, zeros({N}, dtype));
          }
          zmlx::SwiGLUMLP::State state = {
              f.group_size, f.bits, f.kind, Precision::Exact, zmlx::Activation::Silu, 0, 0, has_bias};
          auto primitive = std::make_shared<zmlx::SwiGLUMLP>(gpu(), state);
          launch(label(f, dtype, N, K), "swiglu_mlp", backend, {array({1, 1, N}, dtype, primitive, inputs)});
        }
      }
    }
  }
}

} // namespace

int main() {
  set_default_device(Device::cpu);
  add_rms_norm();
  gather_qmm_combine();
  gather_qmm_swiglu();
  moe_router();
  qk_norm_rope();
  swiglu_mlp();
  return failures == 0 ? 0 : 1;
}
