// The other strategies against one thread that does the same, and all of them across an interruption.
#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "sync/local_sgd.h"
#include "sync/lockstep.h"
#include "tests/sync/problem.h"

namespace ringfold::sync {
namespace {

OptimizerOptions nesterov() { return {.momentum = 0.9, .nesterov = true, .weight_decay = 1e-3}; }
OptimizerOptions adam() { return {.kind = OptimizerOptions::Kind::kAdam, .weight_decay = 1e-3}; }
BucketOptions small_buckets() { return {.bucket_bytes = 3000, .first_bucket_bytes = 1000}; }

MakeStrategy ssgd(const OptimizerOptions& optimizer) {
  return [=](Communicator& comm) { return Ssgd::make(comm, kProblemCounts, optimizer, small_buckets()); };
}
MakeStrategy zero1(const OptimizerOptions& optimizer, const BucketOptions& buckets = small_buckets()) {
  return [=](Communicator& comm) { return Zero1::make(comm, kProblemCounts, optimizer, buckets); };
}
MakeStrategy local(const LocalOptions& options) {
  return [=](Communicator& comm) { return LocalSgd::make(comm, kProblemCounts, options); };
}

// One thread with the whole batch, in double but for the gradients.
std::vector<float> synchronous_oracle(int ranks, const OptimizerOptions& o, const ProblemOptions& p) {
  const size_t elems = problem_elems();
  std::vector<double> w(elems), m(elems), v(elems);
  for (size_t i = 0; i < elems; ++i) w[i] = initial_value(i);
  int t = 0;
  for (uint64_t epoch = 0; epoch < p.epochs; ++epoch) {
    for (size_t step = 0; step < p.steps; ++step) {
      ++t;
      const double lr = problem_lr(epoch, step);
      for (size_t i = 0; i < elems; ++i) {
        double g = o.weight_decay * w[i];
        for (int part = 0; part < ranks; ++part)
          g += static_cast<double>(problem_gradient(static_cast<float>(w[i]), i, epoch, step, part)) / ranks;
        if (o.kind == OptimizerOptions::Kind::kSgd) {
          v[i] = o.momentum * v[i] + g;
          w[i] -= lr * (o.nesterov ? g + o.momentum * v[i] : v[i]);
        } else {
          m[i] = o.beta1 * m[i] + (1 - o.beta1) * g;
          v[i] = o.beta2 * v[i] + (1 - o.beta2) * g * g;
          w[i] -=
              lr * (m[i] / (1 - std::pow(o.beta1, t))) / (std::sqrt(v[i] / (1 - std::pow(o.beta2, t))) + o.epsilon);
        }
      }
    }
  }
  return {w.begin(), w.end()};
}

TEST(Ssgd, TakesTheStepsOfOneThreadWithTheWholeBatch) {
  for (const auto& optimizer : {nesterov(), adam(), OptimizerOptions{}, OptimizerOptions{.momentum = 0.5}}) {
    for (int ranks : {1, 3}) {
      const ProblemOptions problem{.epochs = 3};
      const auto right = synchronous_oracle(ranks, optimizer, problem);
      const auto all = train_on(ranks, ssgd(optimizer), problem);
      EXPECT_LT(largest_gap(all[0], right), 1e-5);
      for (const auto& model : all) EXPECT_EQ(model, all[0]);
    }
  }
}

TEST(Zero1, IsSsgdWithAShareOfTheState) {
  for (const auto& optimizer : {nesterov(), adam()}) {
    for (int ranks : {1, 2, 3, 5}) {
      const ProblemOptions problem{.epochs = 3};
      const auto whole = train_on(ranks, ssgd(optimizer), problem);
      size_t state = 0;
      const auto sharded = train_on(ranks, zero1(optimizer), problem, [&](Strategy& s, int rank) {
        if (rank == 0) state = static_cast<Zero1&>(s).state_elems();
      });
      EXPECT_LT(largest_gap(sharded[0], whole[0]), 2e-6) << ranks;
      for (const auto& model : sharded) EXPECT_EQ(model, sharded[0]);
      EXPECT_LT(state, problem_elems() / static_cast<size_t>(ranks) + 8 * 32 + 1);
    }
  }
}

TEST(Zero1, HasTheBitsOfSsgdWhereTheCommunicatorIsDeterministic) {
  Options deterministic;
  deterministic.deterministic = true;
  for (int ranks : {2, 4}) {
    EXPECT_EQ(train_on(ranks, zero1(adam()), {}, {}, deterministic)[0],
              train_on(ranks, ssgd(adam()), {}, {}, deterministic)[0]);
  }
}

TEST(Zero1, TrainsOnCodesWithEqualReplicas) {
  BucketOptions coded = small_buckets();
  coded.codec = *parse_codec("int8");
  const auto all = train_on(3, zero1(nesterov(), coded), {.epochs = 3});
  for (const auto& model : all) EXPECT_EQ(model, all[0]);
  const double gap = largest_gap(all[0], train_on(3, zero1(nesterov()), {.epochs = 3})[0]);
  EXPECT_LT(gap, 0.02);
  EXPECT_GT(gap, 0);
}

// Ranks one after another, in double, with the meetings spelled out.
std::vector<float> local_oracle(int ranks, const LocalOptions& o, const ProblemOptions& p) {
  const size_t elems = problem_elems(), n = static_cast<size_t>(ranks);
  std::vector<double> common(elems), velocity(elems);
  for (size_t i = 0; i < elems; ++i) common[i] = initial_value(i);
  std::vector<std::vector<double>> own(n, common), momentum(n, std::vector<double>(elems));
  struct Flight {
    uint64_t lands;
    size_t begin, end;
    std::vector<double> average;
  };
  std::vector<Flight> flights;
  uint64_t made = 0;
  const auto land = [&](const Flight& f, double mix) {
    for (size_t i = f.begin; i < f.end; ++i) {
      const double d = f.average[i - f.begin];
      velocity[i] = o.outer_momentum * velocity[i] + d;
      common[i] -= o.outer_lr * (d + (o.outer_momentum > 0 ? o.outer_momentum * velocity[i] : 0));
      for (auto& w : own) w[i] = mix * w[i] + (1 - mix) * common[i];
    }
  };
  const auto depart = [&](size_t fragment) {
    Flight f{made + o.overlap, 0, 0, {}};
    const size_t small = elems / o.fragments, more = elems % o.fragments;
    f.begin = fragment * small + std::min(fragment, more);
    f.end = f.begin + small + (fragment < more ? 1 : 0);
    for (size_t i = f.begin; i < f.end; ++i) {
      double sum = 0;
      for (const auto& w : own) sum += common[i] - w[i];
      f.average.push_back(sum / ranks);
    }
    return f;
  };
  for (uint64_t epoch = 0; epoch < p.epochs; ++epoch) {
    for (size_t step = 0; step < p.steps; ++step) {
      for (size_t r = 0; r < n; ++r) {
        for (size_t i = 0; i < elems; ++i) {
          const double g = static_cast<double>(
                               problem_gradient(static_cast<float>(own[r][i]), i, epoch, step, static_cast<int>(r))) +
                           o.inner.weight_decay * own[r][i];
          momentum[r][i] = o.inner.momentum * momentum[r][i] + g;
          own[r][i] -= problem_lr(epoch, step) * (g + o.inner.momentum * momentum[r][i]);
        }
      }
      ++made;
      for (const Flight& f : flights) {
        if (f.lands == made) land(f, o.mix);
      }
      std::erase_if(flights, [&](const Flight& f) { return f.lands == made; });
      for (size_t f = 0; f < o.fragments; ++f) {
        if ((made + o.local_steps * f / o.fragments) % o.local_steps != 0) continue;
        Flight flight = depart(f);
        if (o.overlap == 0) {
          land(flight, 0);
        } else {
          flights.push_back(std::move(flight));
        }
      }
    }
  }
  for (const Flight& f : flights) land(f, o.mix);
  std::vector<Flight> last;
  for (size_t f = 0; f < o.fragments; ++f) last.push_back(depart(f));
  for (const Flight& f : last) land(f, 0);
  return {common.begin(), common.end()};
}

TEST(LocalSgd, IsWhatOneThreadComputes) {
  const std::vector<LocalOptions> all = {
      {.inner = nesterov(), .local_steps = 1},
      {.inner = nesterov(), .local_steps = 4},
      {.inner = nesterov(), .local_steps = 5, .outer_lr = 0.7, .outer_momentum = 0.9},
      {.inner = nesterov(), .local_steps = 6, .outer_lr = 0.7, .outer_momentum = 0.9, .fragments = 3},
      {.inner = nesterov(),
       .local_steps = 6,
       .outer_lr = 0.7,
       .outer_momentum = 0.5,
       .fragments = 2,
       .overlap = 2,
       .mix = 0.5},
      {.inner = nesterov(), .local_steps = 3, .fragments = 3, .overlap = 2, .mix = 0.25},
      {.inner = nesterov(), .local_steps = 1000, .outer_lr = 0.5},
  };
  for (const LocalOptions& options : all) {
    for (int ranks : {1, 3}) {
      const ProblemOptions problem{.epochs = 2, .steps = 11};
      const auto models = train_on(ranks, local(options), problem);
      EXPECT_LT(largest_gap(models[0], local_oracle(ranks, options, problem)), 1e-5)
          << "H " << options.local_steps << " F " << options.fragments << " overlap " << options.overlap;
      for (const auto& model : models) EXPECT_EQ(model, models[0]);
    }
  }
}

TEST(LocalSgd, MeetingEveryStepIsPlainAveraging) {
  // Without inner momentum, averaging models after each step is averaging gradients.
  const OptimizerOptions plain{.weight_decay = 1e-3};
  const ProblemOptions problem{.epochs = 3};
  const auto averaged = train_on(4, local({.inner = plain, .local_steps = 1}), problem);
  EXPECT_LT(largest_gap(averaged[0], train_on(4, ssgd(plain), problem)[0]), 5e-6);
  const auto seldom = train_on(4, local({.inner = plain, .local_steps = 5}), problem);
  EXPECT_GT(largest_gap(seldom[0], averaged[0]), 1e-4);
}

TEST(LocalSgd, ShowsTheCommonModelBetweenEpochsAndGoesOnFromItsOwn) {
  LocalOptions options{.inner = nesterov(), .local_steps = 4, .outer_lr = 0.7, .outer_momentum = 0.9};
  test::on_ranks(3, [&](Communicator& comm) {
    auto made = LocalSgd::make(comm, kProblemCounts, options);
    ASSERT_TRUE(made.ok());
    Strategy& s = **made;
    ASSERT_TRUE(train_problem(s, {.epochs = 1, .steps = 6, .finish = false}).ok());
    const auto common = parameters_of(s);
    std::vector<float> of_0 = common;
    ASSERT_TRUE(comm.broadcast(of_0.data(), of_0.data(), of_0.size(), DataType::kF32, 0).wait().ok());
    EXPECT_EQ(common, of_0);
    ASSERT_TRUE(s.begin_epoch(1).ok());
    auto task = s.next();
    ASSERT_TRUE(task.ok() && task->has_value());
    EXPECT_NE(parameters_of(s), common);  // two steps of its own since the meeting
  });
}

TEST(LocalSgd, SendsCodesAndWhatTheyMissLater) {
  LocalOptions options{.inner = nesterov(), .local_steps = 3};
  const ProblemOptions problem{.epochs = 4};
  const auto exact = train_on(3, local(options), problem)[0];
  options.codec = *parse_codec("int4");
  uint64_t bytes = 0, plain_bytes = 0;
  const auto coded = train_on(3, local(options), problem, [&](Strategy& s, int rank) {
    if (rank == 0) bytes = s.stats().bytes, plain_bytes = 13 * s.elems() * sizeof(float);
  });
  for (const auto& model : coded) EXPECT_EQ(model, coded[0]);
  EXPECT_LT(largest_gap(coded[0], exact), 0.1);
  EXPECT_LT(bytes, plain_bytes / 6);
}

TEST(LocalSgd, RefusesWhatCannotBe) {
  test::on_ranks(1, [](Communicator& comm) {
    const std::vector<LocalOptions> bad = {
        {.local_steps = 0},
        {.fragments = 0},
        {.local_steps = 2, .fragments = 3},
        {.local_steps = 4, .overlap = 4},
        {.outer_lr = 0},
        {.outer_momentum = 1},
        {.mix = 1.5},
        {.mix = -0.1},
        {.outer_lr = std::nan("")},
    };
    for (const LocalOptions& o : bad)
      EXPECT_EQ(LocalSgd::make(comm, kProblemCounts, o).status().code(), Code::kInvalid);
  });
}

// ---- across an interruption

struct Named {
  const char* name;
  MakeStrategy make;
};
std::vector<Named> interruptible() {
  BucketOptions coded = small_buckets();
  coded.codec = *parse_codec("int8");
  LocalOptions streaming{.inner = nesterov(),
                         .local_steps = 6,
                         .outer_lr = 0.7,
                         .outer_momentum = 0.9,
                         .fragments = 2,
                         .overlap = 2,
                         .mix = 0.5};
  LocalOptions coded_local{.inner = adam(), .local_steps = 4};
  coded_local.codec = *parse_codec("int4");
  return {
      {"ssgd", ssgd(nesterov())},
      {"ssgd, int8", [=](Communicator& c) { return Ssgd::make(c, kProblemCounts, adam(), coded); }},
      {"zero1", zero1(adam())},
      {"zero1, int8", zero1(nesterov(), coded)},
      {"local", local(streaming)},
      {"local, int4", local(coded_local)},
  };
}

State saved_by(int ranks, const MakeStrategy& make, const ProblemOptions& problem) {
  std::vector<State> states(static_cast<size_t>(ranks));
  (void)train_on(ranks, make, problem, [&](Strategy& s, int rank) { s.save(states[static_cast<size_t>(rank)]); });
  State all;
  for (auto& s : states) {
    auto parsed = State::parse(s.serialise());  // as through a file
    EXPECT_TRUE(parsed.ok());
    all.merge(std::move(*parsed));
  }
  return all;
}

MakeStrategy loading(const MakeStrategy& make, const State& state) {
  return [&make, &state](Communicator& comm) {
    auto strategy = make(comm);
    if (strategy.ok()) {
      const Status loaded = (*strategy)->load(state);
      EXPECT_TRUE(loaded.ok()) << loaded.to_string();
    }
    return strategy;
  };
}

TEST(Interruption, ChangesNoBitOnTheSameRanks) {
  for (const Named& strategy : interruptible()) {
    const auto whole = train_on(3, strategy.make, {.epochs = 4, .steps = 7});
    const State state = saved_by(3, strategy.make, {.epochs = 2, .steps = 7, .finish = false});
    const auto rest =
        train_on(3, loading(strategy.make, state), {.first_epoch = 2, .epochs = 4, .steps = 7, .fresh = false});
    EXPECT_EQ(rest[0], whole[0]) << strategy.name;
  }
}

TEST(Interruption, GoesOnWithAnotherNumberOfRanksFromTheSameModel) {
  for (const Named& strategy : interruptible()) {
    const State state = saved_by(3, strategy.make, {.epochs = 2, .steps = 7, .finish = false});
    std::vector<float> saved(problem_elems());
    ASSERT_TRUE(state.get("parameters", 0, saved).ok());
    for (int ranks : {1, 2, 5}) {
      const auto loaded =
          train_on(ranks, loading(strategy.make, state), {.first_epoch = 2, .epochs = 2, .fresh = false});
      ASSERT_EQ(loaded.size(), static_cast<size_t>(ranks));
      const auto rest =
          train_on(ranks, loading(strategy.make, state), {.first_epoch = 2, .epochs = 4, .steps = 7, .fresh = false});
      for (const auto& model : rest) EXPECT_EQ(model, rest[0]) << strategy.name;
      EXPECT_LT(largest_gap(rest[0], saved), 3) << strategy.name;
      EXPECT_GT(largest_gap(rest[0], saved), 1e-3) << strategy.name;
    }
  }
}

TEST(Interruption, BetweenSsgdAndZero1TakesTheStateAlong) {
  const auto whole = train_on(3, ssgd(adam()), {.epochs = 4, .steps = 7});
  const State state = saved_by(3, zero1(adam()), {.epochs = 2, .steps = 7});
  const ProblemOptions rest{.first_epoch = 2, .epochs = 4, .steps = 7, .fresh = false};
  EXPECT_LT(largest_gap(train_on(3, loading(ssgd(adam()), state), rest)[0], whole[0]), 2e-6);
  const State back = saved_by(3, ssgd(adam()), {.epochs = 2, .steps = 7});
  EXPECT_LT(largest_gap(train_on(3, loading(zero1(adam()), back), rest)[0], whole[0]), 2e-6);
}

TEST(State, FindsEveryElementHoweverItWasCut) {
  std::mt19937 random(3);
  for (int round = 0; round < 50; ++round) {
    const size_t elems = 1 + random() % 300;
    std::vector<float> all(elems);
    for (size_t i = 0; i < elems; ++i) all[i] = static_cast<float>(i);
    State whole;
    for (size_t begin = 0; begin < elems;) {  // pieces that overlap, in several states
      const size_t size = 1 + random() % 60, back = std::min<size_t>(begin, random() % 5);
      const size_t from = begin - back, to = std::min(elems, begin + size);
      State one;
      one.add("v", from, std::span(all).subspan(from, to - from));
      whole.merge(std::move(one));
      begin = to;
    }
    auto again = State::parse(whole.serialise());
    ASSERT_TRUE(again.ok());
    for (int i = 0; i < 10; ++i) {
      const size_t from = random() % elems, count = random() % (elems - from + 1);
      std::vector<float> part(count);
      ASSERT_TRUE(again->get("v", from, part).ok());
      EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + static_cast<std::ptrdiff_t>(from)));
    }
    std::vector<float> beyond(elems + 1);
    EXPECT_EQ(again->get("v", 0, beyond).code(), Code::kInvalid);
    EXPECT_EQ(again->get("w", 0, beyond).code(), Code::kInvalid);
  }
}

TEST(State, RefusesDamagedBytes) {
  State state;
  state.add("v", 3, std::vector<float>{1, 2, 3});
  state.numbers["n"] = 7;
  state.blobs["b"] = "bytes";
  const std::string good = state.serialise();
  ASSERT_TRUE(State::parse(good).ok());
  for (size_t size = 0; size < good.size(); ++size)
    EXPECT_EQ(State::parse(std::string_view(good).substr(0, size)).status().code(), Code::kInvalid) << size;
  EXPECT_FALSE(State::parse(good + "x").ok());
  std::string huge = good;
  huge[8] = '\xff';  // the number of vectors
  huge[14] = '\xff';
  EXPECT_FALSE(State::parse(huge).ok());
}

}  // namespace
}  // namespace ringfold::sync
