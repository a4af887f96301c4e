#include "plan/scratch.h"

#include <algorithm>
#include <tuple>

namespace ringfold::plan {

void Scratch::use(size_t operand, const Key& first, uint64_t blocks) {
  Key key = first;
  for (; key.block < first.block + blocks; ++key.block) offsets_[key] = 0;
  uses_.push_back({operand, first});
}

void Scratch::lay_out(const Layout& layout, program::Program* program) {
  const auto stretch = [](const Key& k) { return std::tuple(k.full_size, k.lane, k.layer); };
  uint64_t bytes = 0;
  Key last;
  for (auto& [key, offset] : offsets_) {
    if (stretch(key) != stretch(last)) bytes = (bytes + 63) / 64 * 64;
    last = key;
    offset = bytes;
    const uint64_t elems = layout.elems_of(key.block);
    bytes += (key.full_size ? elems : std::min(elems, program->segment_elems)) * size_of(program->type);
  }
  for (const Use& use : uses_) program->operands[use.operand].base = offsets_.at(use.key);
  program->scratch_bytes = bytes;
}

}  // namespace ringfold::plan
