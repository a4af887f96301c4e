// The schedules: a pure function each, with what is known of it.
//
// All are lists of the same three counters: next F, next B and next W of each chunk, always taken in the order of the
// micro-batches, so that gradients are summed in the same order by every schedule.
#include <fmt/format.h>

#include <algorithm>

#include "ringfold/pipeline.h"

namespace ringfold::pipeline {
namespace {

// One rank's list in the making.
class List {
 public:
  List(Schedule& schedule, int rank)
      : schedule_(schedule),
        rank_(rank),
        stages_(schedule.stages_of(rank)),
        next_(stages_.size() * kActionKinds, 0) {}

  // The next micro-batch of `kind` on `chunk`; one that there is not is left out.
  void add(ActionKind kind, int chunk = 0) {
    int& next = next_[static_cast<size_t>(chunk) * kActionKinds + static_cast<size_t>(kind)];
    put(kind, chunk, next++);
  }
  void put(ActionKind kind, int chunk, int micro_batch) {
    if (micro_batch >= schedule_.micro_batches) return;
    schedule_.actions[static_cast<size_t>(rank_)].push_back({kind, stages_[static_cast<size_t>(chunk)], micro_batch});
  }
  void forward(int chunk = 0) { add(ActionKind::kForward, chunk); }
  void backward(int chunk = 0) { add(ActionKind::kBackward, chunk); }
  void input(int chunk = 0) { add(ActionKind::kBackwardInput, chunk); }
  void weight(int chunk = 0) { add(ActionKind::kBackwardWeight, chunk); }

 private:
  Schedule& schedule_;
  int rank_;
  std::vector<int> stages_;
  std::vector<int> next_;  // by chunk and kind
};

enum class Placement : uint8_t {
  kLoop,  // stages 0 .. p-1 on ranks 0 .. p-1, and again
  kV,     // stages 0 .. p-1 on ranks 0 .. p-1, and back: the first and the last stage are on one rank
};

Schedule begin(std::string_view name, const Shape& shape, Placement placement = Placement::kLoop) {
  Schedule s;
  s.name = name;
  s.micro_batches = shape.micro_batches;
  s.actions.resize(static_cast<size_t>(shape.ranks));
  for (int chunk = 0; chunk < shape.chunks; ++chunk) {
    for (int r = 0; r < shape.ranks; ++r)
      s.rank_of.push_back(placement == Placement::kV && chunk % 2 == 1 ? shape.ranks - 1 - r : r);
  }
  return s;
}

// ---- GPipe (Huang et al., 2019): all forward, then all backward ----

Schedule gpipe(const Shape& shape) {
  Schedule s = begin("gpipe", shape);
  for (int r = 0; r < shape.ranks; ++r) {
    List list(s, r);
    for (int i = 0; i < shape.micro_batches; ++i) list.forward();
    for (int i = 0; i < shape.micro_batches; ++i) list.backward();
  }
  return s;
}

// ---- 1F1B (Narayanan et al., 2019): backward as early as possible ----
// A rank runs ahead by as many forward passes as there are ranks behind it, and then does one of each in turn: when
// the first gradient comes back, it never has more than p activations, however many micro-batches there are.

Schedule one_f_one_b(const Shape& shape) {
  Schedule s = begin("1f1b", shape);
  for (int r = 0; r < shape.ranks; ++r) {
    List list(s, r);
    const int ahead = shape.ranks - 1 - r;
    for (int i = 0; i < ahead; ++i) list.forward();
    for (int i = 0; i < shape.micro_batches; ++i) {
      list.forward();
      list.backward();
    }
  }
  return s;
}

// ---- Interleaved 1F1B (Narayanan et al., 2021): v smaller stages per rank ----
// Filling and draining the pipeline takes p - 1 passes of a stage, which are now v times shorter. Micro-batches come
// in groups of p: p of them through chunk 0, the same p through chunk 1, and so on, and the next p; backward from the
// last chunk to the first.

Schedule interleaved(const Shape& shape) {
  Schedule s = begin("interleaved-1f1b", shape);
  const int p = shape.ranks, v = shape.chunks, total = shape.micro_batches * v;
  for (int r = 0; r < p; ++r) {
    List list(s, r);
    auto chunk_of = [&](int k) { return k % (p * v) / p; };
    auto micro_batch_of = [&](int k) { return k / (p * v) * p + k % p; };
    auto forward = [&](int k) {
      if (k < total) list.put(ActionKind::kForward, chunk_of(k), micro_batch_of(k));
    };
    const int ahead = std::min(total, 2 * (p - 1 - r) + (v - 1) * p);
    for (int k = 0; k < ahead; ++k) forward(k);
    for (int k = 0; k < total; ++k) {
      forward(ahead + k);
      list.put(ActionKind::kBackward, v - 1 - chunk_of(k), micro_batch_of(k));
    }
  }
  return s;
}

// ---- ZB-H1 and ZB-H2 (Qi et al., 2023): W fills the bubbles ----
// As 1F1B, but the gradient of the input goes to the rank before at once, and that of the weights waits: by r
// micro-batches on rank r, so that every rank comes to hold p activations, as rank 0 does anyway; what is left of it
// is done while the rank would wait for gradients at the end. ZB-H2 runs twice as far ahead and lets W wait twice as
// long: with F = B = W nobody waits at all, for 2p - 1 activations.

Schedule zero_bubble(std::string_view name, const Shape& shape, int factor) {
  Schedule s = begin(name, shape);
  for (int r = 0; r < shape.ranks; ++r) {
    List list(s, r);
    const int ahead = factor * (shape.ranks - 1 - r), delay = factor * r;
    for (int i = 0; i < ahead; ++i) list.forward();
    for (int i = 0; i < shape.micro_batches; ++i) {
      list.forward();
      list.input();
      // While draining there is a W after each B, as long as there are any.
      if (i >= std::min(delay, shape.micro_batches - ahead)) list.weight();
    }
    for (int i = 0; i < shape.micro_batches; ++i) list.weight();
  }
  return s;
}

Schedule zb_h1(const Shape& shape) { return zero_bubble("zb-h1", shape, 1); }
Schedule zb_h2(const Shape& shape) { return zero_bubble("zb-h2", shape, 2); }

// ---- ZB-V (Qi et al., 2024): two chunks, down and up again ----
// The last stage lies beside the first, so the first gradient needs no way back over the ranks, and every rank holds
// the same number of activations: 2p half stages, as much as rank 0 in 1F1B. With F = B = W nobody waits between the
// first and the last action of a rank. Written for at least 2p - 1 micro-batches; with fewer, those are left out.

Schedule zb_v(const Shape& shape) {
  Schedule s = begin("zb-v", shape, Placement::kV);
  const int p = shape.ranks, m = std::max(shape.micro_batches, 2 * p - 1);
  for (int r = 0; r < p; ++r) {
    List list(s, r);
    auto both = [&list](int chunk) {
      list.input(chunk);
      list.weight(chunk);
    };
    // Until the first micro-batch has come down to the last rank and up again,
    for (int i = 0; i < 2 * (p - r) - 1; ++i) list.forward(0);
    // then those that come up, in turn with further ones that go down,
    for (int i = 0; i < r; ++i) {
      list.forward(1);
      list.forward(0);
    }
    // then gradients come down the upper chunks.
    for (int i = 0; i < p - r; ++i) {
      list.forward(1);
      both(1);
    }
    // Steady: a gradient has come up the lower chunks; everything in turn.
    for (int i = p; i < m; ++i) {
      list.forward(0);
      both(0);
      list.forward(1);
      both(1);
    }
    // Draining: gradients of the inputs as they come; others wait for them. Then what can wait.
    for (int i = 0; i < r; ++i) {
      list.input(0);
      list.input(1);
    }
    for (int i = 0; i < p - r; ++i) both(0);
    for (int i = 0; i < r; ++i) list.weight(1);
    for (int i = 0; i < r; ++i) list.weight(0);
  }
  return s;
}

// ---- what is known of them ----

Status takes(const Shape& shape, std::string_view name, int least_chunks, int most_chunks) {
  if (shape.chunks >= least_chunks && shape.chunks <= most_chunks) return {};
  return Status(
      Code::kInvalid,
      least_chunks == most_chunks
          ? fmt::format("{} takes {} stage{} for each rank, not {}", name, least_chunks, least_chunks == 1 ? "" : "s",
                        shape.chunks)
          : fmt::format("{} takes 2 stages or more for each rank, not {}; with 1 it is 1f1b", name, shape.chunks));
}

double ranks_behind(const Shape& shape) { return shape.ranks - 1; }
using Bubble = std::optional<double>;
using Peak = std::optional<int>;

Bubble whole_bubble(const Shape& s, const Times& t) { return ranks_behind(s) * t.work(); }

std::vector<Recipe> all_recipes() {
  constexpr int kMany = 1 << 16;
  return {
      {"gpipe", "all forward passes, then all backward passes", 1, "(p-1)(F+B+W)", "m", whole_bubble,
       [](const Shape& s, int) -> Peak { return s.micro_batches; },
       [](const Shape& s) { return takes(s, "gpipe", 1, 1); }, gpipe},
      {"1f1b", "one forward, one backward: at most p activations", 1, "(p-1)(F+B+W)", "p", whole_bubble,
       [](const Shape& s, int rank) -> Peak { return std::min(s.micro_batches, s.ranks - rank); },
       [](const Shape& s) { return takes(s, "1f1b", 1, 1); }, one_f_one_b},
      {"interleaved-1f1b", "1f1b over v smaller stages per rank: v times less bubble, v times the messages", 2,
       "(p-1)(F+B+W)/v", "p + (p-1)/v",
       [](const Shape& s, const Times& t) -> Bubble { return ranks_behind(s) * t.work() / s.chunks; },
       [](const Shape& s, int rank) -> Peak {
         return std::min(s.micro_batches * s.chunks, 2 * (s.ranks - 1 - rank) + (s.chunks - 1) * s.ranks + 1);
       },
       [](const Shape& s) {
         if (Status status = takes(s, "interleaved-1f1b", 2, kMany); !status.ok()) return status;
         if (s.micro_batches % s.ranks == 0) return Status();
         return Status(Code::kInvalid,
                       fmt::format("interleaved-1f1b takes micro-batches in groups of one for each rank: {} is no "
                                   "multiple of {}",
                                   s.micro_batches, s.ranks));
       },
       interleaved},
      {"zb-h1", "1f1b whose weight gradients fill the bubbles, in the same memory", 1, "(p-1)(F+B-W)", "p",
       [](const Shape& s, const Times& t) -> Bubble {
         if (s.micro_batches < s.ranks || t.backward_weight > std::min(t.forward, t.backward_input)) return {};
         return ranks_behind(s) * (t.forward + t.backward_input - t.backward_weight);
       },
       [](const Shape& s, int) -> Peak { return std::min(s.micro_batches, s.ranks); },
       [](const Shape& s) { return takes(s, "zb-h1", 1, 1); }, zb_h1},
      {"zb-h2", "no bubble with F = B = W, for nearly twice the activations", 1, "(p-1)(F+B-2W)", "2p-1",
       [](const Shape& s, const Times& t) -> Bubble {
         if (s.micro_batches < 2 * s.ranks - 1 || t.backward_weight > std::min(t.forward, t.backward_input))
           return {};
         return ranks_behind(s) * (t.forward + t.backward_input - 2 * t.backward_weight);
       },
       [](const Shape& s, int) -> Peak { return std::min(s.micro_batches, 2 * s.ranks - 1); },
       [](const Shape& s) { return takes(s, "zb-h2", 1, 1); }, zb_h2},
      {"zb-v", "two stages per rank, down and up: no bubble with F = B = W, in the memory of 1f1b", 2,
       "0, if F = B = W", "p",
       [](const Shape& s, const Times& t) -> Bubble {
         const bool equal = t.forward == t.backward_input && t.forward == t.backward_weight;
         if (!equal || s.micro_batches < 2 * s.ranks - 1) return {};
         return 0.0;
       },
       [](const Shape& s, int) -> Peak {
         if (s.micro_batches < 2 * s.ranks - 1) return {};
         return 2 * s.ranks;
       },
       [](const Shape& s) { return takes(s, "zb-v", 2, 2); }, zb_v},
  };
}

}  // namespace

const std::vector<Recipe>& recipes() {
  static const std::vector<Recipe> all = all_recipes();
  return all;
}

Result<Recipe> find_recipe(std::string_view name) {
  std::string names;
  for (const Recipe& recipe : recipes()) {
    if (recipe.name == name) return recipe;
    names += fmt::format(" {}", recipe.name);
  }
  return Status(Code::kInvalid, fmt::format("there is no pipeline schedule \"{}\"; there are:{}", name, names));
}

Result<Schedule> make(std::string_view name, const Shape& wanted) {
  auto recipe = find_recipe(name);
  if (!recipe.ok()) return recipe.status();
  Shape shape = wanted;
  if (shape.chunks == 0) shape.chunks = recipe->chunks;
  if (shape.ranks < 1 || shape.micro_batches < 1 || shape.chunks < 1) {
    return Status(Code::kInvalid, fmt::format("{}: {} ranks, {} micro-batches and {} stages per rank: each must be 1 "
                                              "or more",
                                              name, shape.ranks, shape.micro_batches, shape.chunks));
  }
  constexpr int64_t kMost = int64_t{1} << 24;
  const int64_t stages = int64_t{shape.ranks} * shape.chunks;
  if (stages > kMost || stages * shape.micro_batches > kMost) {
    return Status(Code::kInvalid, fmt::format("{}: {} stages times {} micro-batches are more than {} passes", name,
                                              stages, shape.micro_batches, kMost));
  }
  RINGFOLD_TRY(recipe->accepts(shape));
  return recipe->build(shape);
}

}  // namespace ringfold::pipeline
