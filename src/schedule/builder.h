// Lets a generator read like the textbook: `lane.recv_reduce(prev, chunk); lane.send(next, chunk);`.
#pragma once

#include <algorithm>
#include <limits>
#include <utility>

#include "schedule/schedule.h"

namespace ringfold::schedule {

// Consecutive cells first .. first+count-1. An empty span makes no step.
struct Span {
  uint32_t first = 0;
  uint32_t count = 1;
  friend bool operator==(const Span&, const Span&) = default;
};

// Appends steps to one lane. A span longer than a step can cover becomes several steps, cut alike on both sides.
class LaneBuilder {
 public:
  explicit LaneBuilder(Lane& lane) : lane_(&lane) {}

  void send(int peer, Span span) { add(StepKind::kSend, 0, peer, span, 0); }
  void recv(int peer, Span span) { add(StepKind::kRecv, 0, peer, span, 0); }
  void recv_reduce(int peer, Span span, int flags = 0) { add(StepKind::kRecvReduce, flags, peer, span, 0); }
  void copy(Span span, uint32_t source) { add(StepKind::kCopy, 0, -1, span, source); }
  void reduce(Span span, uint32_t source, int flags = 0) { add(StepKind::kReduce, flags, -1, span, source); }
  void signal(uint32_t event) { add(StepKind::kSignal, 0, -1, {0, 1}, event); }
  void wait(uint32_t event) { add(StepKind::kWait, 0, -1, {0, 1}, event); }

 private:
  void add(StepKind kind, int flags, int peer, Span span, uint32_t source) {
    constexpr uint32_t kMost = std::numeric_limits<uint16_t>::max();
    for (uint32_t done = 0; done < span.count; done += kMost) {
      const auto count = static_cast<uint16_t>(std::min(kMost, span.count - done));
      lane_->push_back({kind, static_cast<uint8_t>(flags), count, peer, span.first + done, source + done});
    }
  }
  Lane* lane_;
};

// Collects the steps of one rank.
class Builder {
 public:
  Builder(const Schedule& schedule) : chunks_(static_cast<uint32_t>(schedule.chunks())) {  // NOLINT
    steps_.lanes.resize(static_cast<size_t>(schedule.lanes));
  }

  LaneBuilder lane(int index) { return LaneBuilder(steps_.lanes[static_cast<size_t>(index)]); }
  // Fresh temporaries, one for each chunk of `like` and of its size.
  Span temporaries(Span like) {
    const Span span{chunks_ + static_cast<uint32_t>(steps_.temporaries.size()), like.count};
    for (uint32_t i = 0; i < like.count; ++i) steps_.temporaries.push_back(like.first + i);
    return span;
  }
  uint32_t event() { return steps_.events++; }
  RankSteps take() { return std::move(steps_); }

 private:
  uint32_t chunks_;
  RankSteps steps_;
};

}  // namespace ringfold::schedule
