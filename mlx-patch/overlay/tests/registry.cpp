// The table of the folders: every row can be saved, loaded and asked, and says why it does not run on a GPU.

#include "tests/arrays.h"
#include "zmlx/registry.h"

using namespace zmlx::tests;

namespace {

void expect(bool ok, const std::string& what) {
  cases++;
  failures += !ok;
  std::printf("%s %s\n", ok ? "ok     " : "FAILED ", what.c_str());
}

// A primitive whose state is zeros. Only the row knows how many bytes there are.
std::shared_ptr<mx::Primitive> load_zeros(const zmlx::ExportRow& row, std::string& bytes) {
  for (size_t n = 0; n < 1024; n++) {
    try {
      bytes.assign(n, '\0');
      return row.load(bytes, mx::default_stream(mx::Device::cpu));
    } catch (const std::invalid_argument&) {
    }
  }
  return nullptr;
}

template <typename F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

} // namespace

int main() {
  for (auto& [definition, gpu] : zmlx::table()) {
    std::string name = definition.name;
    std::string bytes;
    if (name.starts_with("recorded_")) {
      auto refused = error_of([&] { definition.row.load(bytes, mx::default_stream(mx::Device::cpu)); });
      expect(refused == std::string(definition.row.name) + " is part of a recorded step, which cannot be saved", refused);
      continue;
    }
    auto primitive = load_zeros(definition.row, bytes);
    expect(primitive && std::string(primitive->name()) == definition.row.name, name + ": its export row has its name");
    expect(primitive && definition.row.save(*primitive) == bytes, name + ": is saved as it was loaded");
    expect(primitive && primitive->is_equivalent(*definition.row.load(bytes, primitive->stream())), name + ": equals itself");
    auto asked = zmlx::supports(name, {mx::Device::gpu, mx::bfloat16, zmlx::Precision::Exact, {}});
    expect(
        !asked.fused && (definition.parameters.empty() || asked.reason.find(definition.parameters[0]) != std::string::npos),
        name + ": a question without parameters names one: " + asked.reason);
    if (gpu || !primitive) {
      continue;
    }
    std::vector<array> outputs = {array(0.0f), array(0.0f)};
    auto error = error_of([&] { primitive->eval_gpu({array(0.0f)}, outputs); });
    expect(error == "[" + name + "] no gpu kernel for " + name + " is compiled into this build.", name + ": " + error);
  }
  auto unknown = zmlx::supports("nothing", {mx::Device::cpu, mx::bfloat16, zmlx::Precision::Exact, {}});
  expect(!unknown.fused && unknown.reason.find("'nothing'") != std::string::npos, unknown.reason);
  return finish();
}
