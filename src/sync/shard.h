// DataShard: which samples this rank sees in which step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "ringfold/status.h"

namespace ringfold::sync {

// Each epoch visits every sample once, in an order that depends on (seed, epoch) only: never on the number of ranks.
// The order is cut into global batches of `batch` samples, and each of those into one consecutive part per rank. So N
// ranks take the same steps on the same global batches as one rank, and every rank takes the same number of steps.
//
// Nothing is dropped or repeated. The last global batch holds what is left, and where a batch does not divide by the
// number of ranks the parts differ by one sample; a part may be empty. A mean over a global batch is therefore the
// *sum* over all ranks of what each rank adds up, divided by global_size(step); never an average of averages.
//
// Not thread safe; a value, so each thread may have its own.
class DataShard {
 public:
  struct Options {
    size_t samples = 0;
    size_t batch = 0;  // of all ranks together
    uint64_t seed = 0;
    int rank = 0;
    int size = 1;
  };
  // kInvalid when there are no samples, more than 2^32 - 1, no batch, or no such rank. Starts with epoch 0.
  static Result<DataShard> make(const Options& options);

  // Parts in proportion to these (one for each of the ranks, none negative, their sum positive) from now on, where
  // batch() is asked for as many; empty: equal ones. Rounded so that they cover the batch. The same on all ranks.
  void set_shares(std::vector<double> shares) { shares_ = std::move(shares); }

  void begin_epoch(uint64_t epoch);
  size_t steps() const;
  // Samples of the global batch of `step` < steps().
  size_t global_size(size_t step) const;
  // This rank's part of it, as sample numbers. Valid until begin_epoch.
  std::span<const uint32_t> batch(size_t step) const { return batch(step, options_.rank, options_.size); }
  // Part `part` of `parts` of it.
  std::span<const uint32_t> batch(size_t step, int part, int parts) const;

 private:
  explicit DataShard(const Options& options);
  Options options_;
  std::vector<double> shares_;
  std::vector<uint32_t> order_;
};

// Part `index` of `parts` of [0, count): consecutive, in order, sizes differing by at most one.
struct Part {
  size_t begin = 0;
  size_t end = 0;
  size_t size() const { return end - begin; }
};
Part part_of(size_t count, int index, int parts);
// The same with parts in proportion to `shares`: each begins at its exact place, rounded.
Part part_of(size_t count, size_t index, std::span<const double> shares);

}  // namespace ringfold::sync
