// One collective call as data, with an oracle: how tests of the executor say what to run and what must come out.
//
// Contributions are small integers that depend on rank, block and element, chosen so that every reduction of up to 17
// ranks is exact in every type (f16 and bf16 included); so results must be right to the bit, whatever the algorithm.
#pragma once

#include <memory>
#include <memory_resource>
#include <string>
#include <vector>

#include "exec/domain.h"
#include "exec/plan.h"
#include "plan/layout.h"

namespace ringfold::test {

struct Call {
  schedule::Shape shape;
  std::string algorithm = "direct";
  int lanes = 1;
  std::vector<int> hosts;
  uint64_t count = 0;
  std::vector<uint64_t> sizes;                // -v forms but all_to_all_v
  std::vector<std::vector<uint64_t>> matrix;  // all_to_all_v: [from][to]
  DataType type = DataType::kF32;
  ReduceOp op;
  bool in_place = false;
  uint64_t tile_bytes = 4096;
  int slots = 4;
  uint64_t salt = 0;  // other contributions

  plan::Layout layout(int rank) const;
  exec::Contract contract() const;
  std::string to_string() const;
};

bool has_in_place_form(Collective collective);
bool has_variable_form(Collective collective);
bool has_meaning(DataType type, ReduceKind op);

// kInvalid when the algorithm's steps do not fit the slots.
Result<std::shared_ptr<const exec::Plan>> bind_plan(const Call& call, exec::Domain& domain);

// What `value` looks like in memory; a small integer from 0 for a place.
void store(std::byte* to, DataType type, double value);
double contribution(const Call& call, int rank, uint64_t block, uint64_t elem);

// The buffers of one rank for one call, filled, with guards around them.
class Buffers {
 public:
  Buffers(const Call& call, int rank, std::pmr::memory_resource* memory = std::pmr::new_delete_resource());
  const std::byte* input() const { return input_; }
  std::byte* output() { return output_; }
  // What is wrong with the result, or "".
  std::string check() const;
  // What a user may do once the call is done: write anything anywhere.
  void scribble();
  bool scribbled() const;  // and has nobody written since?
  // Is all memory as it was at the start?
  bool untouched() const { return first_ == first_before_ && second_ == second_before_; }

 private:
  const Call call_;
  const int rank_;
  const plan::Layout layout_;
  std::pmr::vector<std::byte> first_, second_;  // first_: input, or both when in place
  std::pmr::vector<std::byte> first_before_, second_before_;
  const std::byte* input_ = nullptr;
  std::byte* output_ = nullptr;
};

}  // namespace ringfold::test
