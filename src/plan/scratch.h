// Scratch memory of a program that is being made: operands say what they need, and get their offsets when all have.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <vector>

#include "plan/layout.h"
#include "program/program.h"

namespace ringfold::plan {

class Scratch {
 public:
  // A block's worth of scratch. Blocks of one lane and layer that follow each other lie in one stretch.
  struct Key {
    bool full_size = false;  // holds all of the block, not one segment of it
    int lane = 0;
    uint32_t layer = 0;
    uint64_t block = 0;
    auto operator<=>(const Key&) const = default;
  };

  // The operand with number `operand` starts where `first` does, and stretches over `blocks` blocks.
  void use(size_t operand, const Key& first, uint64_t blocks);
  // Sets the operands' bases, and how many bytes there are.
  void lay_out(const Layout& layout, program::Program* program);

 private:
  struct Use {
    size_t operand;
    Key key;
  };
  std::map<Key, uint64_t> offsets_;
  std::vector<Use> uses_;
};

}  // namespace ringfold::plan
