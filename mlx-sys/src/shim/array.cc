#include "zmlx-sys/src/bridge.rs.h"
#include "zmlx/mlx_api.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <sstream>

#include "mlx/primitives.h"

namespace zmlx_sys {

namespace {
std::atomic<size_t> live{0};

// Bytes of an array of `shape`. MLX multiplies without looking: a product that wraps makes it write
// past what it allocated.
size_t byte_size(const mx::Shape& shape, size_t itemsize) {
  constexpr auto limit = static_cast<size_t>(std::numeric_limits<int64_t>::max());
  // A length of 0 must not hide the product of the others: strides are made of it.
  size_t bytes = itemsize;
  bool empty = false;
  for (auto dim : shape) {
    if (dim < 0 || (dim > 0 && bytes > limit / static_cast<size_t>(dim))) {
      std::ostringstream msg;
      msg << "[array] the shape " << shape << " is "
          << (dim < 0 ? "negative" : "larger than any memory");
      throw std::invalid_argument(msg.str());
    }
    empty |= dim == 0;
    bytes *= dim > 0 ? dim : 1;
  }
  return empty ? 0 : bytes;
}

size_t physical_memory() {
  static const auto pages = sysconf(_SC_PHYS_PAGES);
  static const auto page = sysconf(_SC_PAGESIZE);
  return pages > 0 && page > 0 ? static_cast<size_t>(pages) * page
                               : std::numeric_limits<size_t>::max();
}
} // namespace

// Ids that were seen, in a table that keeps its memory: a decode step has some hundred nodes, and
// a set that allocates for each of them would cost more than checking it.
class Seen {
 public:
  void clear() {
    if (slots_.size() > kKept) {
      slots_.clear();
    }
    std::fill(slots_.begin(), slots_.end(), 0);
    count_ = 0;
  }

  // Whether `id`, which is not 0, is new.
  bool insert(uintptr_t id) {
    if (2 * (count_ + 1) > slots_.size()) {
      grow();
    }
    auto& slot = find(id);
    if (slot == id) {
      return false;
    }
    slot = id;
    count_++;
    return true;
  }

 private:
  // Where `id` is, or goes. Ids are addresses, so their low bits say little.
  uintptr_t& find(uintptr_t id) {
    size_t mask = slots_.size() - 1;
    size_t at = (id * 0x9e3779b97f4a7c15) >> 20;
    while (slots_[at & mask] != 0 && slots_[at & mask] != id) {
      at++;
    }
    return slots_[at & mask];
  }

  void grow() {
    std::vector<uintptr_t> held(std::max<size_t>(1024, 2 * slots_.size()));
    held.swap(slots_);
    for (auto id : held) {
      if (id != 0) {
        find(id) = id;
      }
    }
  }

  static constexpr size_t kKept = 1 << 14;
  std::vector<uintptr_t> slots_; // a power of two of them, 0 where there is none
  size_t count_{0};
};

// Ops made of other ops have nodes that never were a handle of ours, so shapes are looked at once
// more before anything runs. MLX's CPU allocator answers null, which nobody checks, for what the
// machine cannot hold.
void check_graph(const std::vector<mx::array>& outputs) {
  thread_local std::vector<const mx::array*> todo;
  thread_local Seen seen;
  todo.clear();
  seen.clear();
  auto visit = [](const mx::array& a) {
    if (a.status() == mx::array::Status::unscheduled && seen.insert(a.id())) {
      todo.push_back(&a);
    }
  };
  for (auto& a : outputs) {
    visit(a);
  }
  while (!todo.empty()) {
    auto& a = *todo.back();
    todo.pop_back();
    auto bytes = byte_size(a.shape(), a.itemsize());
    if (bytes > physical_memory() && a.has_primitive() &&
        a.primitive().stream().device == mx::Device::cpu) {
      std::ostringstream msg;
      msg << "[eval] an array of shape " << a.shape() << " needs " << bytes
          << " bytes, this machine has " << physical_memory();
      throw OutOfMemory(msg.str());
    }
    for (auto& in : a.inputs()) {
      visit(in);
    }
    for (auto& sibling : a.siblings()) {
      visit(sibling);
    }
  }
}

Array::Array(mx::array arr) : a(std::move(arr)) {
  live.fetch_add(1, std::memory_order_relaxed);
}

Array::~Array() {
  live.fetch_sub(1, std::memory_order_relaxed);
}

ArrayPtr box(mx::array a) {
  byte_size(a.shape(), a.itemsize());
  return std::make_unique<Array>(std::move(a));
}

ArrayVecPtr box(std::vector<mx::array> v) {
  for (auto& a : v) {
    byte_size(a.shape(), a.itemsize());
  }
  auto out = std::make_unique<ArrayVec>();
  out->v = std::move(v);
  return out;
}

mx::Shape to_shape(Ints s) {
  return mx::Shape(s.begin(), s.end());
}

std::vector<int> to_ints(Ints s) {
  return std::vector<int>(s.begin(), s.end());
}

// Rows in the order of `DtypeId`.
static const mx::Dtype kDtypes[] = {
    mx::bool_,
    mx::uint8,
    mx::uint16,
    mx::uint32,
    mx::uint64,
    mx::int8,
    mx::int16,
    mx::int32,
    mx::int64,
    mx::float16,
    mx::float32,
    mx::float64,
    mx::bfloat16,
    mx::complex64};

mx::Dtype to_dtype(DtypeId d) {
  auto i = static_cast<size_t>(d);
  if (i >= std::size(kDtypes)) {
    throw std::invalid_argument("[dtype] unknown dtype id " + std::to_string(i));
  }
  return kDtypes[i];
}

std::optional<mx::array> opt(const ArrayPtr& p) {
  return p ? std::optional<mx::array>(p->a) : std::nullopt;
}

size_t live_arrays() noexcept {
  return live.load(std::memory_order_relaxed);
}

ArrayPtr array_clone(const Array& a) noexcept {
  return std::make_unique<Array>(a.a);
}

ArrayPtr array_from_bytes(rust::Slice<const uint8_t> data, Ints shape, DtypeId dtype) {
  current();
  auto s = to_shape(shape);
  auto d = to_dtype(dtype);
  auto bytes = byte_size(s, d.size());
  if (data.size() != bytes) {
    throw std::invalid_argument(
        "[array] the shape needs " + std::to_string(bytes) + " bytes, got " +
        std::to_string(data.size()));
  }
  auto buffer = mx::allocator::malloc(data.size());
  if (data.size() > 0) {
    auto to = zmlx::linked::raw_ptr(buffer);
    if (!to) {
      throw OutOfMemory("[array] cannot allocate " + std::to_string(bytes) + " bytes");
    }
    std::memcpy(to, data.data(), data.size());
  }
  return box(mx::array(std::move(buffer), std::move(s), d));
}

DtypeId array_dtype(const Array& a) noexcept {
  auto val = a.a.dtype().val();
  for (size_t i = 0; i < std::size(kDtypes); ++i) {
    if (kDtypes[i].val() == val) {
      return static_cast<DtypeId>(i);
    }
  }
  std::terminate(); // a dtype that the pinned MLX does not have
}

size_t array_ndim(const Array& a) noexcept {
  return a.a.ndim();
}

rust::Slice<const int32_t> array_shape(const Array& a) noexcept {
  auto& s = a.a.shape();
  return {s.data(), s.size()};
}

size_t array_size(const Array& a) noexcept {
  return a.a.size();
}

size_t array_nbytes(const Array& a) noexcept {
  return a.a.nbytes();
}

bool array_is_available(const Array& a) noexcept {
  return a.a.is_available();
}

bool array_is_row_contiguous(const Array& a) noexcept {
  return a.a.is_available() && a.a.flags().row_contiguous;
}

rust::Slice<const uint8_t> array_bytes(const Array& a) {
  if (!a.a.is_available()) {
    throw std::invalid_argument("[array] the array is not evaluated");
  }
  if (!a.a.flags().row_contiguous) {
    throw std::invalid_argument("[array] the array is not row contiguous");
  }
  if (a.a.size() == 0) {
    return {};
  }
  return {a.a.data<uint8_t>(), a.a.nbytes()};
}

void array_detach(Array& a) {
  check_graph({a.a});
  a.a.eval();
  a.a.detach();
}

ArrayVecPtr vec_new() noexcept {
  return std::make_unique<ArrayVec>();
}

void vec_push(ArrayVec& v, const Array& a) noexcept {
  v.v.push_back(a.a);
}

size_t vec_len(const ArrayVec& v) noexcept {
  return v.v.size();
}

ArrayPtr vec_get(const ArrayVec& v, size_t i) {
  return box(v.v.at(i));
}

std::unique_ptr<NamedArrays> named_new() noexcept {
  return std::make_unique<NamedArrays>();
}

void named_push(NamedArrays& n, rust::Str name, const Array& a) noexcept {
  n.v.emplace_back(std::string(name), a.a);
}

void named_push_metadata(NamedArrays& n, rust::Str key, rust::Str value) noexcept {
  n.metadata.emplace_back(std::string(key), std::string(value));
}

size_t named_len(const NamedArrays& n) noexcept {
  return n.v.size();
}

rust::String named_name(const NamedArrays& n, size_t i) {
  return rust::String(n.v.at(i).first);
}

ArrayPtr named_array(const NamedArrays& n, size_t i) {
  return box(n.v.at(i).second);
}

rust::Vec<rust::String> named_metadata(const NamedArrays& n) noexcept {
  rust::Vec<rust::String> out;
  for (auto& [k, v] : n.metadata) {
    out.push_back(rust::String::lossy(k));
    out.push_back(rust::String::lossy(v));
  }
  return out;
}

} // namespace zmlx_sys
