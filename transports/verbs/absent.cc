// Stands for the transport where Ringfold was built without the headers of libibverbs.
#include "transports/verbs/verbs.h"

namespace ringfold::verbs {
namespace {

Status not_built() {
  return {Code::kUnavailable, "Ringfold was built without verbs: install libibverbs-dev and build again"};
}

}  // namespace

Result<std::vector<PortReport>> survey(const Options&) { return not_built(); }

Result<std::unique_ptr<Transport>> make(int, int, uint64_t, const Options&) { return not_built(); }

}  // namespace ringfold::verbs
