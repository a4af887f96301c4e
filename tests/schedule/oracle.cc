#include "tests/schedule/oracle.h"

#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <set>
#include <vector>

namespace ringfold::test {
namespace {

using namespace schedule;

// "(0+1)+2": names of contributions, brackets and order as folded; "" is nothing.
using Text = std::string;

std::multiset<Text> parts_of(const Text& text) {
  std::multiset<Text> parts;
  Text part;
  for (const char c : text + "+") {
    if (c >= '0' && c <= '9') {
      part += c;
    } else if (!part.empty()) {
      parts.insert(part);
      part.clear();
    }
  }
  return parts;
}

struct Message {
  int from = 0;
  Step step;
  std::vector<Text> copied;  // empty: by reference
};

}  // namespace

std::string play(const Schedule& schedule, uint64_t seed) {
  std::mt19937_64 random(seed);
  const Shape& shape = schedule.shape;
  const int n = shape.ranks;
  const bool barrier = shape.collective == Collective::kBarrier;
  std::vector<RankSteps> ranks;
  std::vector<std::vector<Text>> cells;
  std::vector<std::vector<size_t>> next;
  std::vector<std::map<uint32_t, int>> events(static_cast<size_t>(n));
  std::map<std::vector<int>, std::deque<Message>> links;
  const size_t slots = 1 + random() % 3;
  for (int r = 0; r < n; ++r) {
    ranks.push_back(schedule.rank(r));
    cells.emplace_back(schedule.chunks() + ranks.back().temporaries.size());
    next.emplace_back(ranks.back().lanes.size(), 0);
    for (uint64_t c = 0; c < schedule.chunks(); ++c) {
      if (starts_with(shape, r, schedule.block_of(c))) cells.back()[c] = std::to_string(r);
    }
  }
  std::string error;
  const auto take = [&](int r, int l) {  // false: has to wait
    auto& own = cells[static_cast<size_t>(r)];
    const Step& step = ranks[static_cast<size_t>(r)].lanes[static_cast<size_t>(l)][next[static_cast<size_t>(r)][l]];
    const auto read = [&](std::vector<Text>& from, uint32_t first) {
      const std::vector<Text> got(from.begin() + first, from.begin() + first + step.count);
      if (std::count(got.begin(), got.end(), Text()) > 0) error = "read nothing";
      return got;
    };
    const auto write = [&](const std::vector<Text>& values, bool fold) {
      for (uint32_t i = 0; i < step.count; ++i) {
        Text& cell = own.at(step.chunk + i);
        if (!fold) {
          cell = values[i];
          continue;
        }
        if (cell.empty()) error = "folded into nothing";
        const bool prepend = step.flags & kPrepend;
        cell = "(" + (prepend ? values[i] : cell) + "+" + (prepend ? cell : values[i]) + ")";
        const bool complete = reduces(shape.collective) && parts_of(cell).size() == static_cast<size_t>(n);
        if (complete != ((step.flags & kComplete) != 0)) error = "complete flag";
      }
    };
    switch (step.kind) {
      case StepKind::kSend: {
        auto& link = links[{r, step.peer, l}];
        if (link.size() == slots) return false;
        link.push_back({r, step, read(own, step.chunk)});
        if (!barrier && random() % 2) link.back().copied.clear();
        break;
      }
      case StepKind::kRecv:
      case StepKind::kRecvReduce: {
        auto& link = links[{step.peer, r, l}];
        if (link.empty()) return false;
        Message& message = link.front();
        if (message.step.count != step.count) {
          error = "sizes";
          return true;
        }
        if (message.copied.empty())
          message.copied = read(cells[static_cast<size_t>(message.from)], message.step.chunk);
        write(message.copied, step.kind == StepKind::kRecvReduce);
        link.pop_front();
        break;
      }
      case StepKind::kCopy:
      case StepKind::kReduce: write(read(own, step.source), step.kind == StepKind::kReduce); break;
      case StepKind::kSignal: ++events[static_cast<size_t>(r)][step.source]; break;
      case StepKind::kWait:
        if (events[static_cast<size_t>(r)][step.source] == 0) return false;
        --events[static_cast<size_t>(r)][step.source];
        break;
    }
    ++next[static_cast<size_t>(r)][l];
    return true;
  };

  // A random lane is favoured for a while, so that some lanes run far ahead of others.
  std::vector<std::pair<int, int>> lanes;
  for (int r = 0; r < n; ++r) {
    for (int l = 0; l < schedule.lanes; ++l) lanes.emplace_back(r, l);
  }
  for (bool moved = true; moved && error.empty();) {
    moved = false;
    std::shuffle(lanes.begin(), lanes.end(), random);
    for (const auto& [r, l] : lanes) {
      const size_t total = ranks[static_cast<size_t>(r)].lanes[static_cast<size_t>(l)].size();
      for (auto burst = 1 + random() % 4; burst > 0 && error.empty(); --burst) {
        if (next[static_cast<size_t>(r)][static_cast<size_t>(l)] == total || !take(r, l)) break;
        moved = true;
      }
    }
  }
  if (!error.empty()) return error;
  for (const auto& [r, l] : lanes) {
    if (next[static_cast<size_t>(r)][static_cast<size_t>(l)] <
        ranks[static_cast<size_t>(r)].lanes[static_cast<size_t>(l)].size()) {
      return "stuck";
    }
  }
  for (const auto& [key, link] : links) {
    if (!link.empty()) return "left over";
  }
  for (uint64_t c = 0; c < schedule.chunks(); ++c) {
    std::multiset<Text> expected;
    Text first;
    for (int r = 0; r < n; ++r) {
      if (starts_with(shape, r, schedule.block_of(c))) expected.insert(std::to_string(r));
    }
    for (int r = 0; r < n; ++r) {
      if (!ends_with(shape, r, schedule.block_of(c))) continue;
      const Text& result = cells[static_cast<size_t>(r)][c];
      const auto parts = parts_of(result);
      if (barrier ? std::set(parts.begin(), parts.end()).size() != static_cast<size_t>(n) : parts != expected) {
        return "value";
      }
      if (first.empty()) first = result;
      if (!barrier && result != first) return "replica";
    }
  }
  return "";
}

}  // namespace ringfold::test
