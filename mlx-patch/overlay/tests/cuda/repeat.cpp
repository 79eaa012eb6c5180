// Whether stock's attention of one query gives the same bits from call to call, alone and beside other calls of the same graph:
// over caches with room for whole steps of 256 tokens, for which stock asks cuDNN, and over others, for which it has a kernel
// of its own.
//
//   repeat [--seed S]

#include <cstring>

#include "mlx/backend/gpu/device_info.h"
#include "tests/arrays.h"

using namespace zmlx::tests;

namespace {

constexpr int kHeads = 32, kKvHeads = 4, kHeadDim = 128;
constexpr int kAlone = 100, kTogether = 24, kRounds = 20;

bool same_bits(const array& a, const array& b) {
  auto x = mx::contiguous(mx::view(a, mx::uint16)), y = mx::contiguous(mx::view(b, mx::uint16));
  mx::eval(std::vector<array>{x, y});
  return std::memcmp(x.data<uint16_t>(), y.data<uint16_t>(), x.nbytes()) == 0;
}

// A cache with room for `room` tokens that holds `length`.
array cache(int room, int length) {
  mx::Shape shape = {1, kKvHeads, room, kHeadDim}, stop = {1, kKvHeads, length, kHeadDim};
  auto all = mx::slice_update(
      mx::zeros(shape, mx::bfloat16), random_array(stop, mx::bfloat16, Values::Normal), mx::Shape{0, 0, 0, 0}, stop);
  mx::eval(all);
  return all;
}

int differ(int room, int length) {
  auto keys = cache(room, length), values = cache(room, length);
  mx::Shape stop = {1, kKvHeads, length, kHeadDim};
  auto attend = [&](const array& q) {
    return mx::fast::scaled_dot_product_attention(
        q, mx::slice(keys, {0, 0, 0, 0}, stop), mx::slice(values, {0, 0, 0, 0}, stop), 0.08839f);
  };
  std::vector<array> queries, expected;
  for (int i = 0; i < kTogether; i++) {
    queries.push_back(random_array({1, kHeads, 1, kHeadDim}, mx::bfloat16, Values::Normal));
    expected.push_back(attend(queries[i]));
    mx::eval(expected[i]);
  }
  int alone = 0, together = 0;
  for (int i = 0; i < kAlone; i++) {
    alone += !same_bits(attend(queries[0]), expected[0]);
  }
  for (int round = 0; round < kRounds; round++) {
    std::vector<array> results;
    for (auto& q : queries) {
      results.push_back(attend(q));
    }
    mx::eval(results);
    for (int i = 0; i < kTogether; i++) {
      together += !same_bits(results[i], expected[i]);
    }
  }
  std::printf("room %d, %d keys: %d of %d differ alone, %d of %d together\n", room, length, alone, kAlone, together,
              kRounds * kTogether);
  return alone + together;
}

} // namespace

int main(int argc, char** argv) {
  read_options(argc, argv, [](auto&, auto) { return 0; });
  if (!mx::gpu::is_available()) {
    std::printf("SKIPPED: there is no GPU\n");
    return 0;
  }
  mx::set_default_device(mx::Device::gpu);
  int of_cudnn = 0;
  for (int room : {256, 512, 1024, 4096}) {
    for (int length : {255, 300, 512, 700, 2100}) {
      if (length > room) {
        continue;
      }
      of_cudnn += differ(room, length);
      cases++;
      failures += differ(room + 8, length) != 0;
    }
  }
  std::printf("through cuDNN %d differ\n", of_cudnn);
  int outcome = finish();
  std::fflush(nullptr);
  std::_Exit(outcome);
}
