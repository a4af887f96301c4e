// Stands for the transport where Ringfold was built without the headers of libibverbs.
#include "transports/verbs/verbs.h"

namespace ringfold::verbs {
namespace {

constexpr char kWhy[] = "Ringfold was built without verbs: install libibverbs-dev and build again";

}  // namespace

bool Survey::usable() const { return false; }

Survey survey(const Options&) { return {{}, {kWhy, ""}}; }

size_t link_bytes(const Options&) { return 0; }

Status try_memory(size_t, const Options&) { return {Code::kUnavailable, kWhy}; }

Result<std::unique_ptr<Transport>> make(int, int, uint64_t, const Options&) {
  return Status(Code::kUnavailable, kWhy);
}

}  // namespace ringfold::verbs
