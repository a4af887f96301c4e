#include "model/cost.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "model/score.h"

namespace ringfold::model {
namespace {

constexpr uint64_t kMostSteps = 150'000;  // that are played, per pass
constexpr uint64_t kMostTiles = 200'000;  // that are played to find the steady state, beyond two passes

// An instant, with or without the terms of the path that led to it. An instant is made from the latest of those it
// waits for by adding to it, so the terms always sum up to the time.
struct Plain {
  double at = 0;
  void add(Term, double seconds) { at += seconds; }
};
struct Itemised {
  double at = 0;
  std::array<double, kTerms> terms = {};
  void add(Term term, double seconds) {
    at += seconds;
    terms[static_cast<size_t>(term)] += seconds;
  }
};
template <typename Time>
void wait_for(Time& time, const Time& other) {
  if (other.at > time.at) time = other;
}

// Seconds per byte. A fold of m operands is one pass over memory: m reads and a write, where two operands take three.
double reduce_of(const Op& op, const NodeFigures& node) {
  return op.folds == 0 ? 0 : (op.folds + 2) / 3.0 * node.reduce;
}

// The lanes that can go on, by the time at which they do: their next tile is ready, and their rank's core is free.
// Ties go by lane, so the order is the same on every run. Winners of ranks, of pairs of ranks and so on: that the
// core of a rank is taken, which postpones all of its lanes, changes one leaf. (A heap of lanes, where those of a
// busy rank were put back, took 60 % of the time of a play, and with four lanes four times as long for a tile as with
// one.)
class Agenda {
 public:
  Agenda(size_t ranks, size_t lanes)
      : lanes_(lanes), leaves_(std::bit_ceil(ranks)), ready_(ranks * lanes, kNever), first_(leaves_) {
    winners_.resize(2 * leaves_);
    for (size_t i = 0; i < leaves_; ++i) winners_[leaves_ + i] = static_cast<uint32_t>(i);
    for (size_t i = leaves_ - 1; i > 0; --i) winners_[i] = winners_[2 * i];
  }

  bool empty() const { return first_[winners_[1]].at == kNever; }
  // Precondition: not empty.
  uint32_t take() {
    const uint32_t lane = first_[winners_[1]].lane;
    ready_[lane] = kNever;
    return lane;
  }
  void add(uint32_t lane, double ready) { ready_[lane] = ready; }
  // After what was taken or added, and when the time has changed until which the core of `rank` is taken.
  void update(size_t rank, double core) {
    First first;
    for (size_t lane = rank * lanes_; lane < (rank + 1) * lanes_; ++lane) {
      const double at = std::max(ready_[lane], core);
      if (at < first.at) first = {at, static_cast<uint32_t>(lane)};
    }
    first_[rank] = first;
    for (size_t i = (leaves_ + rank) / 2; i > 0; i /= 2) {
      const uint32_t left = winners_[2 * i], right = winners_[2 * i + 1];
      const uint32_t winner = first_[right].at < first_[left].at ? right : left;
      if (winner == winners_[i] && winner != rank) break;  // and nothing changes above
      winners_[i] = winner;
    }
  }

 private:
  static constexpr double kNever = std::numeric_limits<double>::infinity();
  struct First {
    double at = kNever;
    uint32_t lane = 0;
  };
  const size_t lanes_, leaves_;
  std::vector<double> ready_;  // by lane
  std::vector<First> first_;   // by rank
  std::vector<uint32_t> winners_;
};

// One playing. Everything that happens is in the order of the agenda.
template <typename Time>
class Play {
 public:
  Play(const Score& score, const ClusterModel& cluster, double tile, double chunk, uint32_t passes)
      : score_(score),
        cluster_(cluster),
        tile_(tile),
        chunk_(chunk),
        passes_(passes),
        agenda_(static_cast<size_t>(score.ranks), static_cast<size_t>(score.lanes)) {}

  Time run() {
    set_up();
    for (uint32_t a = 0; a < actors_.size(); ++a) enable(a);
    while (!agenda_.empty()) {
      const uint32_t index = agenda_.take();
      work(index);
      if (!enable(index)) update(index);
    }
    return end_;
  }
  uint64_t tiles() const { return tiles_; }

 private:
  // In-order messages (or signals) of a link (or event): a stretch of arrivals_.
  struct Queue {
    size_t head = 0, tail = 0;
    uint32_t waiter = Op::kNone;
  };
  struct Actor {
    Time lane, ready;
    double came = -1;  // when the last of its inputs was there; < 0: it takes none
    uint32_t op = 0, tile = 0, pass = 0;
  };
  struct Host {
    bool shared = false;  // more ranks than cores
    std::vector<Time> cores;
    Time out, in;  // port
  };

  int rank_of(uint32_t actor) const { return static_cast<int>(actor) / score_.lanes; }
  const std::vector<Op>& ops_of(uint32_t actor) const { return score_.ops[actor]; }
  double bytes_of(const Op& op) const { return op.cells * chunk_; }
  uint32_t tiles_of(const Op& op) const {
    return std::max(1U, static_cast<uint32_t>(std::ceil(bytes_of(op) / tile_ - 1e-9)));
  }
  Queue& queue_of_event(uint32_t event) { return queues_[score_.links.size() + event]; }

  void set_up() {
    actors_.resize(score_.ops.size());
    cores_.resize(static_cast<size_t>(score_.ranks));
    busy_.resize(score_.links.size());
    queues_.resize(score_.links.size() + score_.events);
    for (const auto& ops : score_.ops) {  // tail: how many messages there will be
      for (const Op& op : ops) {
        if (op.signal != Op::kNone) queue_of_event(op.signal).tail += passes_;
        for (uint32_t i = 0; i < op.outputs; ++i) {
          queues_[score_.ends[op.first_link + op.inputs + i]].tail += size_t{passes_} * tiles_of(op);
        }
      }
    }
    size_t messages = 0;
    for (Queue& queue : queues_) {
      queue.head = messages;
      messages += std::exchange(queue.tail, messages);
    }
    arrivals_.resize(messages);
    hosts_.resize(cluster_.cores.size());
    for (const int host : cluster_.host_of) hosts_[static_cast<size_t>(host)].cores.emplace_back();
    for (size_t h = 0; h < hosts_.size(); ++h) {
      const auto cores = static_cast<size_t>(cluster_.cores[h]);
      hosts_[h].shared = hosts_[h].cores.size() > cores;
      if (hosts_[h].shared) hosts_[h].cores.resize(cores);
    }
  }

  void deliver(Queue& queue, const Time& at) {
    arrivals_[queue.tail++] = at;
    if (queue.waiter != Op::kNone) enable(std::exchange(queue.waiter, Op::kNone));
  }

  // Queues the lane, if everything that its next tile needs is there or on its way; else waits for what is missing.
  bool enable(uint32_t index) {
    Actor& actor = actors_[index];
    const auto& ops = ops_of(index);
    if (actor.op == ops.size()) return false;
    const Op& op = ops[actor.op];
    actor.ready = actor.lane;
    actor.came = -1;
    const auto needs = [&](Queue& queue) {
      if (queue.head == queue.tail) {
        queue.waiter = index;
        return false;
      }
      wait_for(actor.ready, arrivals_[queue.head]);
      actor.came = std::max(actor.came, arrivals_[queue.head].at);
      return true;
    };
    if (actor.tile == 0 && op.wait != Op::kNone && !needs(queue_of_event(op.wait))) return false;
    for (uint32_t i = 0; i < op.inputs; ++i) {
      if (!needs(queues_[score_.ends[op.first_link + i]])) return false;
    }
    agenda_.add(index, actor.ready.at);
    update(index);
    return true;
  }
  void update(uint32_t index) {
    const auto rank = static_cast<size_t>(rank_of(index));
    agenda_.update(rank, cores_[rank].at);
  }

  // Works on one tile: takes it from its inputs, folds, writes, puts it on its outputs.
  void work(uint32_t index) {
    ++tiles_;
    Actor& actor = actors_[index];
    const Op& op = ops_of(index)[actor.op];
    const int rank = rank_of(index);
    Time& own = cores_[static_cast<size_t>(rank)];
    Host& host = host_of(rank);
    Time now = actor.ready;
    // Also for what comes just when the rank has nothing else to do: it has looked too early.
    const bool waited = actor.came >= own.at * (1 - 1e-9);
    wait_for(now, own);
    Time* core = &own;
    if (host.shared) {
      core = &*std::min_element(host.cores.begin(), host.cores.end(),
                                [](const Time& a, const Time& b) { return a.at < b.at; });
      wait_for(now, *core);
      if (waited) now.add(Term::kHandOver, cluster_.node.hand_over);
    }

    const double bytes = std::min(tile_, bytes_of(op) - actor.tile * tile_);
    if (actor.tile == 0 && op.wait != Op::kNone) ++queue_of_event(op.wait).head;
    for (uint32_t i = 0; i < op.inputs; ++i) {
      const uint32_t link = score_.ends[op.first_link + i];
      ++queues_[link].head;
      const LinkFigures& figures = cluster_.link(score_.links[link].from, rank);
      now.add(Term::kOverhead, figures.overhead);
      // What was taken into this rank's memory need not be copied there once more.
      now.add(Term::kCopy, bytes * (op.copies ? std::max(figures.take, cluster_.node.copy) : figures.take));
    }
    if (op.copies && op.inputs == 0) now.add(Term::kCopy, bytes * cluster_.node.copy);
    now.add(Term::kReduce, bytes * reduce_of(op, cluster_.node));
    for (uint32_t i = 0; i < op.outputs; ++i) put(score_.ends[op.first_link + op.inputs + i], bytes, now);

    actor.lane = own = *core = now;
    wait_for(end_, now);
    if (++actor.tile < tiles_of(op)) return;
    actor.tile = 0;
    if (++actor.op == ops_of(index).size() && ++actor.pass < passes_) actor.op = 0;
    if (op.signal != Op::kNone) deliver(queue_of_event(op.signal), now);
  }

  void put(uint32_t link, double bytes, Time& now) {
    const auto [from, to] = score_.links[link];
    const LinkFigures& figures = cluster_.link(from, to);
    now.add(Term::kOverhead, figures.overhead);
    now.add(Term::kCopy, bytes * figures.put);
    // Each queue goes on while there is something in it: link and ports do not wait for each other, the message for
    // the last of them.
    Time arrival = occupy(busy_[link], now, bytes * figures.wire);
    if (cluster_.class_of(from, to) == LinkClass::kOtherHost) {
      const double port = bytes * cluster_.node.port;
      wait_for(arrival, occupy(host_of(from).out, now, port));
      wait_for(arrival, occupy(host_of(to).in, now, port));
    }
    arrival.add(Term::kLatency, figures.latency);
    deliver(queues_[link], arrival);
  }

  static const Time& occupy(Time& queue, const Time& now, double seconds) {
    wait_for(queue, now);
    queue.add(Term::kWire, seconds);
    return queue;
  }
  Host& host_of(int rank) { return hosts_[static_cast<size_t>(cluster_.host_of[static_cast<size_t>(rank)])]; }

  const Score& score_;
  const ClusterModel& cluster_;
  const double tile_, chunk_;
  const uint32_t passes_;
  std::vector<Actor> actors_;
  std::vector<Queue> queues_;  // of links, then of events
  std::vector<Time> arrivals_;
  std::vector<Time> busy_;   // by link: until when its wire is
  std::vector<Time> cores_;  // by rank: until when it works
  std::vector<Host> hosts_;
  Agenda agenda_;
  Time end_;
  uint64_t tiles_ = 0;
};

// The formula for schedules that are too long to play. Counts the rounds of each sampled lane: receives that stand
// alone, one after another, come from different peers at the same time and make one round.
Itemised estimate(const Score& score, const ClusterModel& cluster, double tile, double chunk) {
  Itemised longest;
  double latencies = 0, hand_overs = 0;
  std::vector<int> sharing(cluster.cores.size());
  for (const int host : cluster.host_of) ++sharing[static_cast<size_t>(host)];
  for (size_t r = 0; r < score.played.size(); ++r) {
    const int rank = score.played[r];
    const auto host = static_cast<size_t>(cluster.host_of[static_cast<size_t>(rank)]);
    const double turns = std::max(1.0, static_cast<double>(sharing[host]) / cluster.cores[host]);
    Itemised work;
    double wire = 0, port = 0, latency = 0, wakes = 0;
    for (int l = 0; l < score.lanes; ++l) {
      double lane_latency = 0, rounds = 0;
      bool alone = false;
      for (const Op& op : score.ops[r * static_cast<size_t>(score.lanes) + static_cast<size_t>(l)]) {
        const double bytes = op.cells * chunk, tiles = std::max(1.0, std::ceil(bytes / tile));
        double slowest = 0;
        for (uint32_t i = 0; i < uint32_t{op.inputs} + op.outputs; ++i) {
          const auto [from, to] = score.links[score.ends[op.first_link + i]];
          const LinkFigures& figures = cluster.link(from, to);
          work.add(Term::kOverhead, figures.overhead * tiles * turns);
          const bool input = i < op.inputs;
          const double take = op.copies ? std::max(figures.take, cluster.node.copy) : figures.take;
          work.add(Term::kCopy, bytes * (input ? take : figures.put) * turns);
          if (input) slowest = std::max(slowest, figures.latency);
          if (input) continue;
          wire = std::max(wire, bytes * figures.wire);
          if (cluster.class_of(from, to) == LinkClass::kOtherHost) port += bytes * cluster.node.port * sharing[host];
        }
        if (op.copies && op.inputs == 0) work.add(Term::kCopy, bytes * cluster.node.copy * turns);
        work.add(Term::kReduce, bytes * reduce_of(op, cluster.node) * turns);
        if (op.inputs > 0 && !(alone && op.copies && op.outputs == 0)) lane_latency += slowest, rounds += 1;
        alone = op.inputs > 0 && op.copies && op.outputs == 0;
      }
      latency = std::max(latency, lane_latency);
      wakes = std::max(wakes, rounds);
    }
    latencies += latency;
    if (turns > 1) hand_overs += wakes * cluster.node.hand_over;
    Itemised wires;
    wires.add(Term::kWire, std::max(wire, port));
    wait_for(longest, work);
    wait_for(longest, wires);
  }
  // Where ranks wait for others in rounds, each round's delays are shared by all on its way.
  const auto count = static_cast<double>(score.played.size());
  longest.add(Term::kLatency, latencies / count);
  longest.add(Term::kHandOver, hand_overs / count);
  return longest;
}

// a + factor * (b - a)
Plain along(const Plain& a, const Plain& b, double factor) { return {a.at + factor * (b.at - a.at)}; }
// The two paths may differ in kind, so a term can come out negative: the others then share what it is missing.
Itemised along(const Itemised& a, const Itemised& b, double factor) {
  Itemised result{.at = a.at + factor * (b.at - a.at)};
  double sum = 0;
  for (size_t t = 0; t < kTerms; ++t) {
    result.terms[t] = std::max(0.0, a.terms[t] + factor * (b.terms[t] - a.terms[t]));
    sum += result.terms[t];
  }
  for (double& term : result.terms) term *= sum > 0 ? result.at / sum : 0;
  return result;
}

}  // namespace

class Predictor::Player {
 public:
  Player(const schedule::Schedule& schedule, const ClusterModel& cluster, Cutting cutting)
      : score_(score_of(schedule, kMostSteps)),
        cluster_(cluster),
        tile_(static_cast<double>(cutting.tile_bytes)),
        room_(std::max(1, cutting.slots - 1)) {}

  // Passes as plan/lower.cc makes them: no step of a pass takes more than `room_` tiles.
  bool one_pass(double bytes) const { return bytes / score_.chunks_per_block * score_.widest <= tile_ * room_; }
  uint32_t blocks() const { return (score_.widest + score_.chunks_per_block - 1) / score_.chunks_per_block; }
  bool fits(double bytes) const { return one_pass(bytes) || blocks() <= static_cast<uint32_t>(room_); }

  // Precondition: it fits.
  template <typename Time>
  Time predict(double bytes) {
    const double chunk = bytes / score_.chunks_per_block;
    if (score_.sample() || one_pass(bytes)) return play<Time>(chunk, 1);
    const uint32_t cells = std::min(score_.widest, score_.chunks_per_block);
    const double part = tile_ * (room_ / static_cast<int>(blocks())) / cells;  // of a chunk, per pass
    const double passes = std::max(1.0, chunk / part);
    const int knot = std::min(std::ilogb(passes), last_knot(part) - 1);
    return along(played<Time>(knot, part), played<Time>(knot + 1, part), std::ldexp(passes, -knot) - 1);
  }
  uint64_t tiles() const { return tiles_; }
  bool same_as(const Player& other) const {
    return &cluster_ == &other.cluster_ && tile_ == other.tile_ && room_ == other.room_ && score_ == other.score_;
  }

 private:
  template <typename Time>
  Time play(double chunk, uint32_t passes) {
    if (score_.sample()) {
      const Itemised result = estimate(score_, cluster_, tile_, chunk);
      if constexpr (std::is_same_v<Time, Plain>)
        return {result.at};
      else
        return result;
    } else {
      Play<Time> playing(score_, cluster_, tile_, chunk, passes);
      const Time end = playing.run();
      tiles_ += playing.tiles();
      return end;
    }
  }

  // The time of 2^knot full passes is played; between the knots, and beyond the last, it is a line. So that this line
  // shows the steady state, the last but one has filled the longest pipe (a chain there and back), if that is not too
  // much to play: algorithms with many messages have short pipes.
  int last_knot(double part) {
    if (last_knot_ == 0) {
      uint64_t tiles = 0;
      for (const auto& ops : score_.ops) {
        for (const Op& op : ops)
          tiles += static_cast<uint64_t>(std::max(1.0, std::ceil(op.cells * part / tile_ - 1e-9)));
      }
      const int filled = std::max(2, 2 * score_.ranks / room_);
      last_knot_ = 1;
      while ((1 << (last_knot_ - 1)) < filled && (tiles << (last_knot_ + 1)) <= kMostTiles) ++last_knot_;
    }
    return last_knot_;
  }
  template <typename Time>
  const Time& played(int knot, double part) {
    auto& knots = [this]() -> auto& {
      if constexpr (std::is_same_v<Time, Plain>)
        return plain_;
      else
        return itemised_;
    }
    ();
    if (knots.size() <= static_cast<size_t>(knot)) knots.resize(static_cast<size_t>(knot) + 1);
    auto& time = knots[static_cast<size_t>(knot)];
    if (!time) time = play<Time>(part, 1U << knot);
    return *time;
  }

  const Score score_;
  const ClusterModel& cluster_;
  const double tile_;
  const int room_;
  int last_knot_ = 0;                        // 0: not known yet
  std::vector<std::optional<Plain>> plain_;  // by knot
  std::vector<std::optional<Itemised>> itemised_;
  uint64_t tiles_ = 0;
};

Predictor::Predictor(const schedule::Schedule& schedule, const ClusterModel& cluster, Cutting cutting)
    : player_(std::make_unique<Player>(schedule, cluster, cutting)) {}
Predictor::~Predictor() = default;
Predictor::Predictor(Predictor&&) noexcept = default;
Predictor& Predictor::operator=(Predictor&&) noexcept = default;

bool Predictor::fits(uint64_t bytes) const { return player_->fits(static_cast<double>(bytes)); }

double Predictor::seconds(uint64_t bytes) {
  if (!fits(bytes)) return std::numeric_limits<double>::infinity();
  return player_->predict<Plain>(static_cast<double>(bytes)).at;
}

Cost Predictor::cost(uint64_t bytes) {
  if (!fits(bytes)) return {.seconds = std::numeric_limits<double>::infinity()};
  const auto time = player_->predict<Itemised>(static_cast<double>(bytes));
  return {time.at, time.terms};
}

bool Predictor::same_as(const Predictor& other) const { return player_->same_as(*other.player_); }

uint64_t Predictor::tiles() const { return player_->tiles(); }

std::string_view name_of(Term term) {
  constexpr std::string_view kNames[] = {"latency", "overhead", "wire", "copy", "reduce", "hand_over"};
  return kNames[static_cast<size_t>(term)];
}

std::string Cost::to_string() const {
  std::string text = seconds_text(seconds);
  const char* joint = " = ";
  for (size_t t = 0; t < kTerms; ++t) {
    if (terms[t] == 0) continue;
    text +=
        fmt::format("{}{} {}", std::exchange(joint, " + "), name_of(static_cast<Term>(t)), seconds_text(terms[t]));
  }
  return text;
}

}  // namespace ringfold::model
