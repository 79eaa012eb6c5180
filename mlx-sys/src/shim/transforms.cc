#include "zmlx-sys/src/bridge.rs.h"

namespace zmlx_sys {

namespace {
using Fn = std::function<std::vector<mx::array>(const std::vector<mx::array>&)>;

// The Rust function as a C++ one. It borrows `f`, so it must not outlive the
// bridged call it is made in.
Fn borrow(const Callback& f) {
  return [&f](const std::vector<mx::array>& inputs) {
    ArrayVec in{inputs};
    return f.call(in)->v;
  };
}
} // namespace

ArrayVecPtr vjp(const Callback& f, const ArrayVec& primals, const ArrayVec& cotangents) {
  return box(mx::vjp(borrow(f), primals.v, cotangents.v).second);
}

ArrayVecPtr jvp(const Callback& f, const ArrayVec& primals, const ArrayVec& tangents) {
  return box(mx::jvp(borrow(f), primals.v, tangents.v).second);
}

ArrayVecPtr vmap(const Callback& f, const ArrayVec& inputs, Ints in_axes, Ints out_axes) {
  return box(mx::vmap(borrow(f), to_ints(in_axes), to_ints(out_axes))(inputs.v));
}

void export_function(rust::Str path, const Callback& f, const ArrayVec& inputs) {
  mx::export_function(std::string(path), borrow(f), inputs.v);
}

std::unique_ptr<ImportedFn> import_function(rust::Str path) {
  current();
  return std::make_unique<ImportedFn>(ImportedFn{mx::import_function(std::string(path))});
}

ArrayVecPtr imported_call(const ImportedFn& f, const ArrayVec& inputs) {
  return box(f.f(inputs.v));
}

} // namespace zmlx_sys
