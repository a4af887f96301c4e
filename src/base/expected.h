// Where the arrivals of a link are wanted before they come: what Link::expect() said, by number of the arrival.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace ringfold::base {

// Arrivals first .. end()-1 are pieces of this memory, in order.
struct Stretch {
  uint64_t first = 0;
  std::byte* memory = nullptr;
  uint64_t bytes = 0, piece = 0;

  uint64_t end() const { return first + (bytes + piece - 1) / piece; }
  // Where arrival `k` goes if it has `size` bytes; null: not here.
  std::byte* place(uint64_t k, uint64_t size) const {
    if (k < first || k >= end()) return nullptr;
    const uint64_t offset = (k - first) * piece;
    return size == std::min(piece, bytes - offset) ? memory + offset : nullptr;
  }
};

// Those of one link, in the order of the arrivals; at most kMost, what goes beyond is not remembered.
class Expected {
 public:
  static constexpr size_t kMost = 4;

  // False: there is no room, or something else was said of some of these.
  bool add(const Stretch& stretch) {
    if (count_ == kMost || stretch.bytes == 0 || stretch.first < end_) return false;
    stretches_[count_++] = stretch;
    end_ = stretch.end();
    return true;
  }
  // Arrivals before `next` are over.
  void drop(uint64_t next) {
    while (count_ > 0 && stretches_[0].end() <= next) {
      std::move(stretches_.begin() + 1, stretches_.begin() + count_, stretches_.begin());
      --count_;
    }
  }
  void clear() { count_ = 0; }
  // Where arrival `k` goes; null: nowhere that is expected. `headed`: the newest one before it with a preamble.
  std::byte* place(uint64_t k, uint64_t size, uint64_t headed = 0) const {
    for (const Stretch& s : *this) {
      if (k < s.end()) return s.first < headed ? nullptr : s.place(k, size);
    }
    return nullptr;
  }
  const Stretch* begin() const { return stretches_.data(); }
  const Stretch* end() const { return stretches_.data() + count_; }

 private:
  std::array<Stretch, kMost> stretches_;
  size_t count_ = 0;
  uint64_t end_ = 0;  // of all that were added
};

}  // namespace ringfold::base
