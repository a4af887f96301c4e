#include "sync/shard.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "sync/mix.h"

namespace ringfold::sync {
namespace {

// The standard library's shuffle and distributions differ between implementations; ranks on unlike hosts must agree.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  // Below `bound` > 0, by the high half of a 64 x 32 bit product; the bias is below 2^-31.
  uint32_t below(uint32_t bound) {
    state_ += 0x9e3779b97f4a7c15;
    return static_cast<uint32_t>(((mix(state_) >> 32) * bound) >> 32);
  }

 private:
  uint64_t state_;
};

}  // namespace

Part part_of(size_t count, int index, int parts) {
  const size_t i = static_cast<size_t>(index), n = static_cast<size_t>(parts);
  const size_t small = count / n, larger = count % n;  // the first `larger` parts have one more
  const size_t begin = i * small + std::min(i, larger);
  return {begin, begin + small + (i < larger ? 1 : 0)};
}

Part part_of(size_t count, size_t index, std::span<const double> shares) {
  // Summed in one order, so that the end of a part is the beginning of the next, bit for bit.
  double before = 0, own = 0, all = 0;
  for (size_t i = 0; i < shares.size(); ++i) {
    if (i < index) before += shares[i];
    if (i <= index) own += shares[i];
    all += shares[i];
  }
  const auto place = [&](double sum) {
    return std::min(count, static_cast<size_t>(std::llround(static_cast<double>(count) * (sum / all))));
  };
  const size_t begin = place(before);  // (no part is less than empty, whatever the shares are)
  return {begin, index + 1 == shares.size() ? count : std::max(begin, place(own))};
}

Result<DataShard> DataShard::make(const Options& options) {
  if (options.samples == 0) return Status(Code::kInvalid, "there are no samples to train on");
  if (options.samples > std::numeric_limits<uint32_t>::max()) {
    return Status(Code::kInvalid, "more than 2^32 - 1 samples: " + std::to_string(options.samples));
  }
  if (options.batch == 0) return Status(Code::kInvalid, "the batch size must be at least 1");
  if (options.size < 1 || options.rank < 0 || options.rank >= options.size) {
    return Status(Code::kInvalid,
                  "no rank " + std::to_string(options.rank) + " among " + std::to_string(options.size));
  }
  return DataShard(options);
}

DataShard::DataShard(const Options& options) : options_(options), order_(options.samples) { begin_epoch(0); }

void DataShard::begin_epoch(uint64_t epoch) {
  std::iota(order_.begin(), order_.end(), 0U);
  Random random(mix(options_.seed) ^ mix(~epoch));
  for (size_t i = order_.size() - 1; i > 0; --i)
    std::swap(order_[i], order_[random.below(static_cast<uint32_t>(i) + 1)]);
}

size_t DataShard::steps() const { return (options_.samples - 1) / options_.batch + 1; }

size_t DataShard::global_size(size_t step) const {
  return std::min(options_.batch, options_.samples - step * options_.batch);
}

std::span<const uint32_t> DataShard::batch(size_t step, int part, int parts) const {
  const Part range = shares_.size() == static_cast<size_t>(parts)
                         ? part_of(global_size(step), static_cast<size_t>(part), shares_)
                         : part_of(global_size(step), part, parts);
  return std::span(order_).subspan(step * options_.batch + range.begin, range.size());
}

}  // namespace ringfold::sync
