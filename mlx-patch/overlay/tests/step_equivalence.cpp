// Bit for bit against stock MLX, in one process: rms_norm, qk_norm_rope, attention, greedy_token over dtypes, shapes,
// layouts, head groups, offsets and extreme values. Fast attention against float64.
//
//   step_equivalence [--isa NAME] [--threads N] [--seed S] [--quick]

#include <functional>
#include <sstream>

#include "tests/arrays.h"

using namespace zmlx::tests;
using zmlx::Precision;

namespace {

double worst_fast = 0;

// The same values with gaps between the rows and reversed axes in memory.
array scattered(const array& a, bool last) {
  std::vector<int> order(a.ndim());
  int n = a.ndim();
  for (int i = 0; i < n; i++) {
    order[i] = last ? n - 1 - i : (i == n - 1 ? i : n - 2 - i);
  }
  auto t = mx::contiguous(mx::transpose(a, order));
  auto padded = mx::concatenate({t, t}, -1);
  mx::eval(padded);
  auto s = mx::slice(padded, mx::Shape(a.ndim(), 0), t.shape());
  auto out = mx::transpose(s, order);
  mx::eval(out);
  return out;
}

template <typename... Args>
std::string text(Args&&... args) {
  std::ostringstream s;
  (s << ... << args);
  return s.str();
}

void check_rms_norm(mx::Dtype dtype, Values v, mx::Shape shape, int layout) {
  auto x = random_array(shape, dtype, v);
  if (layout) {
    x = scattered(x, layout == 2);
  }
  auto w = random_array({shape.back()}, dtype, v == Values::Sprinkled ? v : Values::Normal);
  for (float eps : {1e-6f, 1e-5f}) {
    same(
        text("rms_norm ", dtype, x.shape(), " v", int(v), " layout ", layout),
        zmlx::rms_norm(x, w, eps),
        mx::fast::rms_norm(x, w, eps));
  }
}

array stock_rope(
    array x,
    int heads,
    std::optional<array> w,
    float eps,
    const zmlx::RopeParams& r,
    const array& offset) {
  if (x.ndim() == 3) {
    x = mx::reshape(x, {x.shape(0), x.shape(1), heads, -1});
  }
  if (w) {
    x = mx::fast::rms_norm(x, *w, eps);
  }
  x = mx::transpose(x, {0, 2, 1, 3});
  if (r.input_scale != 1) { // as mlx-lm's YarnRoPE: the part that is turned
    auto turned = mx::slice(x, {0, 0, 0, 0}, {x.shape(0), x.shape(1), x.shape(2), r.dims});
    x = mx::slice_update(x, turned * array(r.input_scale, x.dtype()), {0, 0, 0, 0}, turned.shape());
  }
  auto base = r.freqs ? std::nullopt : std::optional<float>(r.base);
  return mx::fast::rope(x, r.dims, r.traditional, base, r.scale, offset, r.freqs);
}

void check_rope(mx::Dtype dtype, Values v, int B, int L, int H, int D, int dims, bool traditional, int variant) {
  bool flat = variant & 1;
  bool norm = variant & 2;
  bool freqs = variant & 4;
  auto x = random_array(flat ? mx::Shape{B, L, H * D} : mx::Shape{B, L, H, D}, dtype, v);
  if (variant & 8) {
    x = scattered(x, variant & 16);
  }
  auto w = norm ? std::optional<array>(random_array({D}, dtype)) : std::nullopt;
  zmlx::RopeParams r{dims, traditional, variant & 32 ? 1e6f : 10000.0f, variant & 64 ? 0.25f : 1.0f, std::nullopt};
  r.input_scale = variant & 256 ? 1.3465736f : 1.0f;
  if (freqs) {
    r.freqs = mx::abs(random_array({dims / 2}, mx::float32)) + array(0.1f);
  }
  for (int first : {0, 1, 77, 4095, 131071, 20000000}) {
    array offset = array(first);
    if (variant & 128) {
      std::vector<int> many;
      for (int b = 0; b < B; b++) {
        many.push_back(first + 13 * b);
      }
      offset = array(many.data(), {B}, mx::int32);
    }
    same(
        text("qk_norm_rope ", dtype, x.shape(), " dims ", dims, traditional ? " trad" : "", " variant ", variant, " offset ", first, " v", int(v)),
        zmlx::qk_norm_rope(x, H, w, 1e-6f, r, offset),
        stock_rope(x, H, w, 1e-6f, r, offset));
  }
}

// What attention may have besides queries, keys and values.
struct Parts {
  int window;
  bool sinks;
  int rope_dim;
};

void check_attention(
    mx::Dtype dtype,
    Values v,
    int B,
    int H,
    int Hkv,
    int Lq,
    int Lk,
    int D,
    int Dv,
    bool causal,
    int layout,
    Parts parts = {}) {
  auto q = random_array({B, H, Lq, D}, dtype, v);
  int room = layout == 1 ? Lk + 37 : Lk;
  auto k = random_array({B, Hkv, room, D}, dtype, v);
  auto w = random_array({B, Hkv, room, Dv}, dtype, v == Values::Sprinkled ? Values::Normal : v);
  auto finite = [](const array& a) {
    return mx::where(mx::isinf(a), array(1.0f, a.dtype()), mx::clip(a, array(-1e4f, a.dtype()), array(1e4f, a.dtype())));
  };
  if (causal && v == Values::Sprinkled) { // attention/cpu.cpp, limits
    q = finite(q);
    k = finite(k);
  }
  int R = parts.rope_dim;
  auto q_rope = random_array({B, H, Lq, R ? R : 1}, dtype, v);
  auto k_rope = random_array({B, 1, room, R ? R : 1}, dtype, v);
  if (v == Values::Sprinkled) {
    q_rope = finite(q_rope);
    k_rope = finite(k_rope);
  }
  auto lay_out = [&](array& a, bool cached) {
    if (layout == 1 && cached) { // a view of a larger cache
      a = mx::slice(a, {0, 0, 0, 0}, {B, a.shape(1), Lk, a.shape(3)});
    } else if (layout >= 2) {
      a = scattered(a, layout == 3);
    }
  };
  lay_out(q, false);
  lay_out(q_rope, false);
  lay_out(k, true);
  lay_out(w, true);
  lay_out(k_rope, true);
  zmlx::AttentionOptions options;
  options.window = parts.window;
  if (parts.sinks) {
    options.sinks = random_array({H}, dtype, v == Values::Large ? v : Values::Normal);
  }
  if (R) {
    options.rope = zmlx::AttentionRope{q_rope, {k_rope}};
  }
  float scale = 1 / std::sqrt(float(D + R));
  auto what = text(
      "attention ", dtype, " B", B, " H", H, "/", Hkv, " L", Lq, "/", Lk, " D", D, "/", Dv, causal ? " causal" : "", " layout ",
      layout, " v", int(v), " window ", parts.window, parts.sinks ? " sinks" : "", " rope ", R);
  // As mlx-lm's create_causal_mask.
  auto rows = mx::expand_dims(mx::arange(Lk - Lq, Lk), 1);
  auto columns = mx::expand_dims(mx::arange(0, Lk), 0);
  auto mask = mx::greater_equal(rows, columns);
  if (parts.window) {
    mask = mx::logical_and(mask, mx::less(rows, columns + array(parts.window)));
  }
  bool masked = causal && (parts.window || R);
  auto stock_mask = masked ? std::optional<array>(mask) : std::nullopt;
  if (R) { // as mlx-lm's multi-head latent attention
    auto pe = mx::matmul(q_rope * array(scale, dtype), mx::swapaxes(k_rope, -1, -2));
    stock_mask = causal ? mx::where(mask, pe, array(mx::finfo(dtype).min, dtype)) : pe;
  }
  auto mode = causal && !stock_mask ? "causal" : "";
  auto expected = mx::fast::scaled_dot_product_attention(q, k, w, scale, mode, stock_mask, options.sinks);
  if (dtype != mx::float32) {
    same(what, zmlx::attention(q, {k}, {w}, options, scale, causal, Precision::Exact), expected);
  }
  if (v == Values::Sprinkled) {
    return;
  }
  // fast: against float64
  auto d = [](const array& a) { return mx::astype(a, mx::float64); };
  auto repeat = [&](const array& a) { return H == Hkv ? a : mx::repeat(a, H / Hkv, 1); };
  auto factor = array(double(scale), mx::float64);
  auto scores = mx::matmul(d(q) * factor, mx::swapaxes(repeat(d(k)), -1, -2));
  if (R) {
    scores = scores + mx::matmul(d(q_rope) * factor, mx::swapaxes(d(k_rope), -1, -2));
  }
  if (causal) {
    scores = mx::where(mask, scores, array(-1e300, mx::float64));
  }
  if (parts.sinks) {
    auto sinks = mx::broadcast_to(mx::reshape(d(*options.sinks), {1, H, 1, 1}), {B, H, Lq, 1});
    scores = mx::slice(mx::softmax(mx::concatenate({sinks, scores}, -1), -1), {0, 0, 0, 1}, {B, H, Lq, Lk + 1});
  } else {
    scores = mx::softmax(scores, -1);
  }
  auto truth = mx::matmul(scores, repeat(d(w)));
  auto error = [&](const array& y) {
    auto e = mx::max(mx::abs(d(y) - truth)) / mx::maximum(mx::max(mx::abs(truth)), array(1e-30, mx::float64));
    mx::eval(e);
    return e.item<double>();
  };
  double fast = error(zmlx::attention(q, {k}, {w}, options, scale, causal, Precision::Fast));
  double stock = error(expected);
  cases++;
  // Scores of thousands lose digits before the exponential, in any order.
  double digits = v == Values::Large ? 5e-4 : 2e-5;
  double limit = dtype == mx::float32 ? digits : dtype == mx::float16 ? 2e-3 : 1e-2;
  worst_fast = std::max(worst_fast, fast / (limit + 3 * stock));
  if (!(fast <= limit + 3 * stock)) { // large scores amplify: then stock errs as much
    failures++;
    std::printf("INACCURATE %s: fast %.2e, stock %.2e\n", what.c_str(), fast, stock);
  }
}

// Every part with every other one, over types, values, heads, lengths and layouts; then the shapes of gpt-oss and of
// multi-head latent attention.
void check_attention_parts(mx::Dtype dtype) {
  int turn = 0;
  for (auto v : {Values::Normal, Values::Large, Values::Tiny, Values::Sprinkled}) {
    if (quick && v != Values::Normal) {
      continue;
    }
    for (int window : {0, 1, 7, 64, 65, 1000}) {
      for (bool sinks : {false, true}) {
        for (int rope_dim : {0, 8, 17, 64}) {
          for (auto [Lq, Lk] : {std::pair{1, 1}, {1, 65}, {1, 300}, {7, 7}, {5, 64}, {33, 161}, {130, 130}, {9, 4}}) {
            for (bool causal : {true, false}) {
              if ((window && !causal) || (!causal && Lq > Lk)) {
                continue;
              }
              auto [D, Dv] = std::vector<std::pair<int, int>>{{64, 64}, {17, 5}, {96, 40}, {32, 128}}[turn % 4];
              auto [H, Hkv] = std::vector<std::pair<int, int>>{{8, 1}, {4, 4}, {6, 2}, {3, 1}, {14, 2}}[turn % 5];
              check_attention(dtype, v, 1 + turn % 2, H, Hkv, Lq, Lk, D, Dv, causal, turn % 7 % 4, {window, sinks, rope_dim});
              turn++;
            }
          }
        }
      }
    }
  }
  for (int Lk : {1, 40, 129, 700}) {
    check_attention(dtype, Values::Normal, 1, 64, 8, 1, Lk, 64, 64, true, 1, {128, true, 0});
    check_attention(dtype, Values::Normal, 2, 20, 1, 1, Lk, 512, 512, false, 1, {0, false, 64});
  }
  check_attention(dtype, Values::Normal, 1, 64, 8, 200, 327, 64, 64, true, 1, {128, true, 0});
  check_attention(dtype, Values::Normal, 1, 5, 5, 40, 140, 192, 256, true, 0, {0, false, 64});
}

// Rows of a batch over caches of their own, each part included: the bits that each row has alone.
void check_attention_rows(mx::Dtype dtype, Parts parts, bool causal, int Lq) {
  int H = 6, Hkv = 2, D = 40, Dv = 24, R = parts.rope_dim;
  std::vector<array> keys, values, k_ropes, alone;
  std::vector<int> lengths = {Lq, 77, Lq + 64};
  auto q = random_array({3, H, Lq, D}, dtype);
  auto q_rope = random_array({3, H, Lq, R ? R : 1}, dtype);
  auto sinks = parts.sinks ? std::optional<array>(random_array({H}, dtype)) : std::nullopt;
  for (int b = 0; b < 3; b++) {
    int room = lengths[b] + 10 * b;
    keys.push_back(random_array({1, Hkv, room, D}, dtype));
    values.push_back(random_array({1, Hkv, room, Dv}, dtype));
    k_ropes.push_back(random_array({1, 1, room, R ? R : 1}, dtype));
    auto cut = [&](const array& a) {
      auto stop = a.shape();
      stop[2] = lengths[b];
      return mx::slice(a, {0, 0, 0, 0}, stop);
    };
    auto row = [&](const array& a) {
      auto stop = a.shape();
      stop[0] = b + 1;
      return mx::slice(a, {b, 0, 0, 0}, stop);
    };
    zmlx::AttentionOptions one;
    one.window = parts.window;
    one.sinks = sinks;
    if (R) {
      one.rope = zmlx::AttentionRope{row(q_rope), {cut(k_ropes[b])}};
    }
    alone.push_back(zmlx::attention(row(q), {cut(keys[b])}, {cut(values[b])}, one, 0.2f, causal, Precision::Exact));
  }
  zmlx::AttentionOptions all;
  all.window = parts.window;
  all.sinks = sinks;
  all.lengths = array(lengths.data(), {3}, mx::int32);
  if (R) {
    all.rope = zmlx::AttentionRope{q_rope, k_ropes};
  }
  auto together = zmlx::attention(q, keys, values, all, 0.2f, causal, Precision::Exact);
  same(text("attention rows ", dtype, " window ", parts.window, parts.sinks ? " sinks" : "", " rope ", R), together, mx::concatenate(alone, 0));
}

void check_greedy(mx::Dtype dtype, mx::Shape shape, int kind) {
  auto x = random_array(shape, dtype, kind == 3 ? Values::Large : Values::Normal);
  if (kind == 1) { // many equal maxima
    x = mx::astype(mx::round(x * array(2.0f)) , dtype);
  } else if (kind == 2) { // a trained model's: one large logit
    x = mx::astype(x * array(2.0f) + mx::astype(mx::greater(random_array(shape, mx::float32), array(4.2f)), mx::float32) * array(12.0f), dtype);
  } else if (kind == 4) {
    x = random_array(shape, dtype, Values::Sprinkled);
  } else if (kind == 5) {
    x = mx::full(shape, -INFINITY, dtype);
  } else if (kind == 6) { // flat
    x = mx::astype(x * array(0.01f), dtype);
  } else if (kind == 7) {
    x = mx::astype(x * array(0.001f) + array(9.0f), dtype);
  }
  auto logprobs = x - mx::logsumexp(x, -1, true);
  same(text("greedy_token ", dtype, shape, " kind ", kind), zmlx::greedy_token(x), mx::argmax(logprobs, -1));
}

using Fn = std::function<std::vector<array>(const std::vector<array>&)>;

// Gradients, directional derivatives and vmap over axis 0 of every input in `mapped`.
void check_transforms(const std::string& what, const Fn& ours, const Fn& stock, std::vector<array> inputs, std::vector<int> mapped) {
  auto y = stock(inputs)[0];
  auto cotangent = random_array(y.shape(), y.dtype());
  auto a = mx::vjp(ours, inputs, {cotangent}).second;
  auto b = mx::vjp(stock, inputs, {cotangent}).second;
  std::vector<array> tangents;
  for (size_t i = 0; i < inputs.size(); i++) {
    same(text(what, " vjp ", i), a[i], b[i]);
    tangents.push_back(random_array(inputs[i].shape(), inputs[i].dtype()));
  }
  same(what + " jvp", mx::jvp(ours, inputs, tangents).second[0], mx::jvp(stock, inputs, tangents).second[0]);
  auto batch = inputs;
  std::vector<int> axes(inputs.size(), -1);
  for (int i : mapped) {
    auto shape = inputs[i].shape();
    shape.insert(shape.begin(), 3);
    batch[i] = random_array(shape, inputs[i].dtype());
    axes[i] = 0;
  }
  std::vector<array> rows;
  for (int n = 0; n < 3; n++) {
    auto one = inputs;
    for (int i : mapped) {
      one[i] = mx::take(batch[i], array(n), 0);
    }
    rows.push_back(stock(one)[0]);
  }
  same(what + " vmap", mx::vmap(ours, axes)(batch)[0], mx::stack(rows));
}

void check_all_transforms() {
  for (auto dtype : {mx::float32, mx::bfloat16}) {
    auto r = [&](mx::Shape s) { return random_array(s, dtype); };
    check_transforms(
        text("rms_norm ", dtype),
        [](auto& in) { return std::vector<array>{zmlx::rms_norm(in[0], in[1], 1e-6f)}; },
        [](auto& in) { return std::vector<array>{mx::fast::rms_norm(in[0], in[1], 1e-6f)}; },
        {r({4, 32}), r({32})},
        {0});
    zmlx::RopeParams rope{16, false, 1e4f, 1.0f, std::nullopt};
    auto offset = array({3, 9}, mx::int32);
    check_transforms(
        text("qk_norm_rope ", dtype),
        [&](auto& in) { return std::vector<array>{zmlx::qk_norm_rope(in[0], 4, in[1], 1e-6f, rope, offset)}; },
        [&](auto& in) { return std::vector<array>{stock_rope(in[0], 4, in[1], 1e-6f, rope, offset)}; },
        {r({2, 5, 64}), r({16})},
        {0});
    if (dtype == mx::float32) {
      continue;
    }
    check_transforms(
        text("attention ", dtype),
        [](auto& in) { return std::vector<array>{zmlx::attention(in[0], {in[1]}, {in[2]}, {}, 0.3f, true, Precision::Exact)}; },
        [](auto& in) {
          return std::vector<array>{mx::fast::scaled_dot_product_attention(in[0], in[1], in[2], 0.3f, "causal")};
        },
        {r({2, 4, 5, 16}), r({2, 2, 7, 16}), r({2, 2, 7, 16})},
        {0, 2});
    for (auto parts : {Parts{3, true, 0}, {0, true, 8}, {2, false, 8}}) {
      auto options = [=](const std::vector<array>& in) {
        zmlx::AttentionOptions o;
        o.window = parts.window;
        size_t next = 3;
        if (parts.rope_dim) {
          o.rope = zmlx::AttentionRope{in[next], {in[next + 1]}};
          next += 2;
        }
        if (parts.sinks) {
          o.sinks = in[next];
        }
        return o;
      };
      std::vector<array> inputs = {r({2, 4, 5, 16}), r({2, 2, 7, 16}), r({2, 2, 7, 16})};
      std::vector<int> mapped = {0, 2};
      if (parts.rope_dim) {
        inputs.insert(inputs.end(), {r({2, 4, 5, 8}), r({2, 1, 7, 8})});
        mapped.push_back(4);
      }
      if (parts.sinks) {
        inputs.push_back(r({4}));
      }
      check_transforms(
          text("attention ", dtype, " window ", parts.window, " sinks ", parts.sinks, " rope ", parts.rope_dim),
          [&](auto& in) {
            return std::vector<array>{zmlx::attention(in[0], {in[1]}, {in[2]}, options(in), 0.3f, true, Precision::Exact)};
          },
          [&](auto& in) {
            auto o = options(in);
            auto rows = mx::expand_dims(mx::arange(2, 7), 1);
            auto columns = mx::expand_dims(mx::arange(0, 7), 0);
            auto mask = mx::greater_equal(rows, columns);
            if (o.window) {
              mask = mx::logical_and(mask, mx::less(rows, columns + array(o.window)));
            }
            if (o.rope) {
              auto pe = mx::matmul(o.rope->q * array(0.3f, in[0].dtype()), mx::swapaxes(o.rope->keys[0], -1, -2));
              mask = mx::where(mask, pe, array(mx::finfo(pe.dtype()).min, pe.dtype()));
            }
            return std::vector<array>{
                mx::fast::scaled_dot_product_attention(in[0], in[1], in[2], 0.3f, "", mask, o.sinks)};
          },
          inputs,
          mapped);
    }
    auto logits = r({3, 50});
    same(
        text("greedy_token vmap ", dtype),
        mx::vmap([](const array& x) { return zmlx::greedy_token(x); }, 1)(mx::transpose(logits)),
        mx::argmax(logits - mx::logsumexp(logits, -1, true), -1));
  }
}

} // namespace

int main(int argc, char** argv) {
  if (!read_options(argc, argv, [](auto&, auto&) { return 0; })) {
    return 2;
  }
  auto report = [](const char* what) {
    std::printf("%-14s %6d cases so far, %lld values, %d differ\n", what, cases, (long long)compared, failures);
  };
  auto dtypes = {mx::bfloat16, mx::float16, mx::float32};
  for (auto dtype : dtypes) {
    for (auto v : {Values::Normal, Values::Large, Values::Tiny, Values::Sprinkled}) {
      for (mx::Shape shape :
           {mx::Shape{2048}, {1, 1, 2048}, {1, 128}, {3, 5, 80}, {1, 33, 64}, {2, 3, 17}, {1, 1}, {40, 1000}, {2, 2, 2, 96}}) {
        for (int layout : {0, 1, 2}) {
          check_rms_norm(dtype, v, shape, layout);
        }
      }
    }
  }
  report("rms_norm");
  for (auto dtype : dtypes) {
    for (auto [D, dims] : {std::pair{128, 128}, {64, 64}, {80, 80}, {96, 48}, {128, 32}, {66, 34}, {8, 2}}) {
      for (bool traditional : {false, true}) {
        for (int variant = 0; variant < 512; variant += quick ? 1 + rng() % 33 : 1) {
          check_rope(dtype, Values::Normal, 1 + rng() % 3, 1 + rng() % 9, 1 + rng() % 33, D, dims, traditional, variant);
        }
        check_rope(dtype, Values::Tiny, 2, 3, 4, D, dims, traditional, 2);
        check_rope(dtype, Values::Large, 2, 3, 4, D, dims, traditional, 2 + 1);
      }
    }
    check_rope(dtype, Values::Normal, 1, 1, 32, 128, 128, false, 3);
    check_rope(dtype, Values::Normal, 1, 130, 32, 128, 128, false, 3);
  }
  report("qk_norm_rope");
  for (auto dtype : dtypes) {
    for (auto v : {Values::Normal, Values::Large, Values::Tiny, Values::Sprinkled}) {
      for (auto [D, Dv] : {std::pair{128, 128}, {64, 64}, {80, 80}, {96, 96}, {72, 40}, {17, 5}, {256, 256}}) {
        for (auto [H, Hkv] : {std::pair{32, 4}, {4, 4}, {8, 1}, {3, 1}, {14, 2}}) {
          if (D > 128 && H > 8) {
            continue;
          }
          if (quick && v != Values::Normal) {
            continue;
          }
          for (auto [Lq, Lk] : {std::pair{1, 1}, {1, 65}, {1, 300}, {7, 7}, {5, 64}, {33, 161}, {130, 130}, {9, 4}}) {
            if (H == 32 && Lq > 100 && v != Values::Normal) {
              continue;
            }
            check_attention(dtype, v, 1 + rng() % 2, H, Hkv, Lq, Lk, D, Dv, rng() % 2 || Lq > Lk, rng() % 4);
          }
        }
      }
    }
  }
  check_attention(mx::bfloat16, Values::Normal, 1, 32, 4, 1, 2100, 128, 128, false, 1);
  check_attention(mx::bfloat16, Values::Normal, 1, 8, 2, 70, 2100, 128, 128, true, 1);
  for (auto dtype : dtypes) {
    check_attention_parts(dtype);
    for (int window : {0, 1, 20, 500}) {
      for (bool sinks : {false, true}) {
        for (int rope_dim : {0, 8}) {
          for (int Lq : {1, 5}) {
            if (dtype != mx::float32) {
              check_attention_rows(dtype, {window, sinks, rope_dim}, window > 0 || Lq > 1, Lq);
            }
          }
        }
      }
    }
  }
  report("attention");
  for (auto dtype : dtypes) {
    for (mx::Shape shape : {mx::Shape{1}, {1, 7}, {2, 3, 100}, {1, 1, 32000}, {2, 151936}, {1, 1, 262144}}) {
      for (int kind = 0; kind < 8; kind++) {
        for (int i = 0; i < (quick ? 1 : shape.back() > 40000 ? 4 : 8); i++) {
          check_greedy(dtype, shape, kind);
        }
      }
    }
  }
  report("greedy_token");
  check_all_transforms();
  report("transforms");
  std::printf("worst fast attention error: %.2f of its limit\n", worst_fast);
  return finish();
}
