// Ranks of a mesh are lost in the middle of steps; those that are left go on as whole replicas, and all parts of the
// model end where they would have ended anyway: none has made a step that another has not, or has made one twice.
#include "sync/mesh_recovery.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <thread>

#include "sync/lockstep.h"
#include "sync/shard.h"
#include "tests/sync/problem.h"

namespace ringfold::sync::mesh_recovery {
namespace {

// ---- who takes which place ----

TEST(Seats, AsManyReplicasAsThereAreRanksForWhoeverIsLost) {
  for (const auto& [ranks, pipeline, tensor] :
       {std::array{4, 2, 1}, {6, 2, 1}, {6, 3, 1}, {4, 1, 2}, {8, 2, 2}, {12, 2, 3}}) {
    const auto before = Mesh::make(ranks, pipeline, tensor);
    ASSERT_TRUE(before.ok());
    const int places = pipeline * tensor;
    for (unsigned alive = 1; alive < 1U << ranks; ++alive) {
      std::vector<MeshPoint> held;
      std::set<int> parts;
      const auto part = [&](const MeshPoint& p) { return p.pipeline * tensor + p.tensor; };
      for (int r = 0; r < ranks; ++r) {
        if ((alive >> r & 1U) == 0) continue;
        held.push_back(before->point_of(r));
        parts.insert(part(held.back()));
      }
      const auto seats = seats_of(*before, held);
      const int replicas = static_cast<int>(held.size()) / places;
      ASSERT_EQ(seats.ok(), replicas > 0 && static_cast<int>(parts.size()) == places) << alive;
      if (!seats.ok()) {
        ASSERT_EQ(seats.status().code(), Code::kPeerLost);
        continue;
      }
      ASSERT_EQ(seats->mesh.lengths(), (MeshPoint{replicas, pipeline, tensor}));
      std::set<int> taken, kept;
      int moved = 0;
      for (size_t s = 0; s < held.size(); ++s) {
        const int seat = seats->rank_of[s];
        if (seat < 0) continue;
        ASSERT_LT(seat, seats->mesh.ranks());
        ASSERT_TRUE(taken.insert(seat).second) << "two ranks in one place";
        const int now = part(seats->mesh.point_of(seat));
        now == part(held[s]) ? void(kept.insert(now)) : void(++moved);
      }
      ASSERT_EQ(static_cast<int>(taken.size()), replicas * places);
      ASSERT_EQ(static_cast<int>(kept.size()), places) << "somebody who has it must stay with each part";
      if (held.size() == static_cast<size_t>(ranks)) {
        ASSERT_EQ(moved, 0);
      }
    }
  }
}

TEST(Seats, WhatIsLostIsSaid) {
  const auto before = Mesh::make(4, 2, 1);
  const auto few = seats_of(*before, std::vector<MeshPoint>{{0, 0, 0}});
  EXPECT_NE(few.status().message().find("1 of 4 ranks are left, and a replica of the model takes 2"),
            std::string::npos)
      << few.status().message();
  const auto part = seats_of(*before, std::vector<MeshPoint>{{0, 0, 0}, {1, 0, 0}});
  EXPECT_NE(part.status().message().find("stage 2, part 1"), std::string::npos) << part.status().message();
}

// ---- going on ----

constexpr int kWork = 12;
constexpr size_t kSteps = 24;

enum class When { kBefore, kSummed, kAgreeing, kRecovering, kRecovered };
struct Loss {
  int rank = 0;
  size_t step = 0;
  When when = When::kBefore;
};

// What a part of the model begins with, and its gradient.
size_t index_in(int place, size_t i) { return i + 1000 * static_cast<size_t>(place); }

struct Ended {
  std::vector<float> model;
  int place = -1, ranks = 0;
  bool left_over = false;
  Status status;
};

class MeshRun {
 public:
  MeshRun(int ranks, int pipeline, int tensor, std::vector<Loss> losses)
      : mesh_(*Mesh::make(ranks, pipeline, tensor)), losses_(std::move(losses)) {}

  std::vector<Ended> run() {
    std::vector<Ended> all(static_cast<size_t>(mesh_.ranks()));
    Options options;
    options.timeout_s = 60;
    auto comms = Communicator::init_local(mesh_.ranks(), options);
    EXPECT_TRUE(comms.ok()) << comms.status().to_string();
    std::vector<std::thread> threads;
    for (size_t r = 0; r < all.size(); ++r) threads.emplace_back([&, r] { all[r] = rank(std::move((*comms)[r])); });
    for (auto& thread : threads) thread.join();
    return all;
  }

  // As processes. Of each rank that was not lost, what became of it; no models.
  std::vector<Ended> run_processes() {
    processes_ = true;
    std::string folder = std::filesystem::temp_directory_path() / "ringfold-mesh-XXXXXX";
    EXPECT_NE(::mkdtemp(folder.data()), nullptr);
    struct Word {
      int place, ranks, left_over, ok;
      float first;
    };
    std::vector<std::pair<pid_t, int>> ranks;
    for (int r = 0; r < mesh_.ranks(); ++r) {
      int ends[2];
      EXPECT_EQ(::pipe(ends), 0);
      const pid_t pid = ::fork();
      if (pid == 0) {
        Options options;
        options.rank = r;
        options.size = mesh_.ranks();
        options.rendezvous = "dir:" + folder;
        options.key = "a key that nobody else has";
        options.timeout_s = 60;
        Word word{};
        if (auto job = Communicator::init(options); job.ok()) {
          const Ended end = rank(std::move(*job));
          word = {end.place, end.ranks, end.left_over, end.status.ok(), end.model.empty() ? 0 : end.model.front()};
        }
        ::_exit(::write(ends[1], &word, sizeof word) == sizeof word ? 0 : 1);
      }
      ::close(ends[1]);
      ranks.emplace_back(pid, ends[0]);
    }
    std::vector<Ended> all;
    for (const auto& [pid, from] : ranks) {
      Word word{};
      const bool told = ::read(from, &word, sizeof word) == sizeof word;
      ::close(from);
      ::waitpid(pid, nullptr, 0);
      if (!told) continue;
      Ended end{.model = {word.first},
                .place = word.place,
                .ranks = word.ranks,
                .left_over = word.left_over != 0,
                .status = {}};
      if (!word.ok) end.status = Status(Code::kPeerLost, "gave up");
      all.push_back(std::move(end));
    }
    std::filesystem::remove_all(folder);
    return all;
  }

 private:
  const Loss* loss_of(int rank, size_t step, When when) const {
    for (const Loss& loss : losses_) {
      if (loss.rank != rank || loss.when != when || loss.step > step) continue;
      if (processes_) ::_exit(0);  // as one that is killed: it takes leave of nobody
      return &loss;
    }
    return nullptr;
  }

  Ended rank(Communicator job) {
    const int me = job.rank();
    const Status fell(Code::kAborted, "fell");
    auto split_up = split(job, mesh_);
    if (!split_up.ok()) return {.status = split_up.status()};
    MeshCommunicators parts = std::move(*split_up);
    size_t step = 0;
    const auto make = [&]() -> Result<std::unique_ptr<Strategy>> {
      auto made = Ssgd::make(parts.data, kProblemCounts, {.momentum = 0.9, .nesterov = true},
                             {.bucket_bytes = 3000, .first_bucket_bytes = 1000});
      if (!made.ok()) return made;
      RINGFOLD_TRY((*made)->agree_by([&]() -> Status {
        if (loss_of(me, step, When::kAgreeing)) return fell;
        return job.barrier().wait();
      }));
      return made;
    };
    const auto place = [&] {
      const MeshPoint at = parts.mesh.point_of(job.rank());
      return at.pipeline * parts.mesh.lengths().tensor + at.tensor;
    };
    Ended out;
    auto made = make();
    if (!made.ok()) return {.status = made.status()};
    auto strategy = std::move(*made);
    size_t i = 0;
    for (size_t p = 0; p < strategy->parameters(); ++p)
      for (float& w : strategy->parameter(p)) w = initial_value(index_in(place(), i++));
    const auto train = [&]() -> Status {
      for (;;) {
        auto task = strategy->next();
        if (!task.ok()) return task.status();
        if (!task->has_value()) return job.barrier().wait();
        step = (*task)->step;
        if (loss_of(me, step, When::kBefore)) return fell;
        // As activations do: nobody computes a step before its neighbours have made the one before.
        RINGFOLD_TRY(parts.pipeline.barrier().wait());
        RINGFOLD_TRY(parts.tensor.barrier().wait());
        const Part part = part_of(kWork, parts.data.rank(), parts.data.size());
        size_t end = strategy->elems();
        for (size_t p = strategy->parameters(); p-- > 0;) {
          const auto w = strategy->parameter(p), g = strategy->gradient(p);
          end -= w.size();
          for (size_t k = 0; k < w.size(); ++k) {
            double sum = 0;
            for (size_t work = part.begin; work < part.end; ++work)
              sum += problem_gradient(w[k], index_in(place(), end + k), 0, step, static_cast<int>(work));
            g[k] += static_cast<float>(sum / kWork);
          }
          strategy->ready(p);
        }
        if (loss_of(me, step, When::kSummed)) return fell;
        RINGFOLD_TRY(strategy->step({.lr = problem_lr(0, step), .loss = 1, .samples = 1}));
      }
    };
    out.status = strategy->start();
    if (out.status.ok()) out.status = strategy->begin_epoch(kSteps, 0);
    if (out.status.ok()) out.status = train();
    while (out.status.verdict()) {
      bool falls = false;
      const Remake remake{.drop = [&] { falls = loss_of(me, step, When::kRecovering) != nullptr; },
                          .make = [&]() -> Result<std::unique_ptr<Strategy>> {
                            if (falls) return fell;
                            return make();
                          }};
      auto recovered = recover(job, parts, strategy, remake, strategy->steps_done());
      if (!recovered.ok()) {
        out.status = recovered.status();
        break;
      }
      out.left_over = !recovered->member;
      if (out.left_over) return out;
      if (loss_of(me, step, When::kRecovered)) {
        out.status = fell;
        break;
      }
      out.status = strategy->begin_epoch(kSteps, recovered->steps);
      if (out.status.ok()) out.status = train();
    }
    if (out.status.ok()) {
      out.model = parameters_of(*strategy);
      out.place = place();
      out.ranks = job.size();
    }
    strategy.reset();
    return out;
  }

  const Mesh mesh_;
  const std::vector<Loss> losses_;
  bool processes_ = false;
};

std::string text(const std::vector<Loss>& losses) {
  std::string text;
  for (const Loss& l : losses)
    text += "rank " + std::to_string(l.rank) + " at step " + std::to_string(l.step) + ", " +
            std::to_string(static_cast<int>(l.when)) + "; ";
  return text;
}

// True: whole replicas came to the end.
bool expect_right_end(const std::vector<Ended>& all, const std::vector<Loss>& losses,
                      const std::vector<std::vector<float>>& by_place) {
  int ended = 0, gave_up = 0;
  std::vector<int> of_place(by_place.size(), 0);
  for (size_t r = 0; r < all.size(); ++r) {
    const Ended& e = all[r];
    const bool fell =
        std::any_of(losses.begin(), losses.end(), [&](const Loss& l) { return l.rank == static_cast<int>(r); });
    if (e.left_over || (fell && !e.status.ok())) continue;
    if (!e.status.ok()) {
      // Nothing to go on with; or it heard of that from the others.
      EXPECT_NE(e.status.message().find("checkpoint"), std::string::npos) << r << ": " << e.status.to_string();
      ++gave_up;
      continue;
    }
    ++ended;
    if (e.place < 0) {
      ADD_FAILURE() << "rank " << r << " has no place";
      continue;
    }
    ++of_place[static_cast<size_t>(e.place)];
    const auto& expected = by_place[static_cast<size_t>(e.place)];
    EXPECT_EQ(e.model.size(), expected.size());
    float worst = 0;
    for (size_t i = 0; i < std::min(e.model.size(), expected.size()); ++i)
      worst = std::max(worst, std::abs(e.model[i] - expected[i]));
    EXPECT_LT(worst, 1e-4) << "rank " << r << ", place " << e.place;
  }
  EXPECT_TRUE(ended == 0 || gave_up == 0) << ended << " came to the end, and " << gave_up << " gave up";
  for (const int n : of_place) EXPECT_EQ(n, of_place.front()) << "replicas are not whole";
  return ended > 0;
}

std::vector<std::vector<float>> without_losses(int ranks, int pipeline, int tensor) {
  std::vector<std::vector<float>> by_place(static_cast<size_t>(pipeline * tensor));
  for (const Ended& e : MeshRun(ranks, pipeline, tensor, {}).run()) {
    EXPECT_TRUE(e.status.ok()) << e.status.to_string();
    if (e.place >= 0) by_place[static_cast<size_t>(e.place)] = e.model;
  }
  return by_place;
}

TEST(MeshRecovery, AfterOneLossTheOthersEndWhereAllWouldHave) {
  const auto by_place = without_losses(4, 2, 1);
  EXPECT_NE(by_place[0], by_place[1]);
  for (int rank = 0; rank < 4; ++rank) {
    for (const When when : {When::kBefore, When::kSummed, When::kAgreeing}) {
      for (const size_t step : {size_t{0}, kSteps - 1}) {
        const std::vector<Loss> losses = {{rank, step, when}};
        SCOPED_TRACE(text(losses));
        EXPECT_TRUE(expect_right_end(MeshRun(4, 2, 1, losses).run(), losses, by_place));
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(MeshRecovery, AfterSeveralLossesWholeReplicasEndThereOrAllGiveUp) {
  int ended = 0, runs = 0;
  for (const auto& [ranks, pipeline, tensor] : {std::array{6, 2, 1}, {4, 1, 2}, {8, 2, 2}}) {
    const auto by_place = without_losses(ranks, pipeline, tensor);
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      std::mt19937_64 random(seed);
      std::vector<int> order(static_cast<size_t>(ranks));
      std::iota(order.begin(), order.end(), 0);
      std::shuffle(order.begin(), order.end(), random);
      std::vector<Loss> losses;
      const size_t first = random() % (kSteps - 2);
      for (size_t n = 0; n < 1 + random() % 3; ++n) {
        losses.push_back(
            {.rank = order[n], .step = first + random() % 3, .when = static_cast<When>(random() % (n == 0 ? 3 : 5))});
      }
      SCOPED_TRACE(std::to_string(ranks) + " ranks, seed " + std::to_string(seed) + ": " + text(losses));
      ended += expect_right_end(MeshRun(ranks, pipeline, tensor, losses).run(), losses, by_place) ? 1 : 0;
      ++runs;
      if (::testing::Test::HasFailure()) return;
    }
  }
  EXPECT_GT(ended, runs / 3);
  EXPECT_LE(ended, runs);
}

// Those who have seen a recovery through and those who have not stand on the same ground: they do not part.
TEST(MeshRecovery, ALossRightAfterARecoveryLeavesOneMesh) {
  const auto by_place = without_losses(8, 2, 1);
  for (int again = 0; again < 2; ++again) {
    for (int second = 0; second < 7; ++second) {
      const std::vector<Loss> losses = {{7, 3, When::kBefore}, {second, 0, When::kRecovered}};
      SCOPED_TRACE(text(losses));
      const auto all = MeshRun(8, 2, 1, losses).run_processes();
      int ended = 0, ranks = 0;
      for (const Ended& e : all) {
        if (e.left_over) continue;
        EXPECT_TRUE(e.status.ok());
        ASSERT_GE(e.place, 0);
        EXPECT_NEAR(e.model.front(), by_place[static_cast<size_t>(e.place)].front(), 1e-4);
        if (ranks == 0) ranks = e.ranks;
        EXPECT_EQ(e.ranks, ranks) << "there are two runs";
        ++ended;
      }
      EXPECT_EQ(ended, ranks);
      EXPECT_GE(ranks, 4);
      if (::testing::Test::HasFailure()) return;
    }
  }
}

// A step that some have made and others were about to: these make it, too, and it is not made again.
TEST(MeshRecovery, AnUpdateThatOthersHaveMadeIsMadeUpFor) {
  Options options;
  options.timeout_s = 60;
  auto comms = Communicator::init_local(1, options);
  ASSERT_TRUE(comms.ok());
  const auto make = [&] {
    auto made = Ssgd::make(comms->front(), kProblemCounts, {.momentum = 0.9});
    size_t i = 0;
    for (size_t p = 0; p < (*made)->parameters(); ++p)
      for (float& w : (*made)->parameter(p)) w = initial_value(i++);
    EXPECT_TRUE((*made)->start().ok());
    EXPECT_TRUE((*made)->begin_epoch(2).ok());
    return std::move(*made);
  };
  const auto step = [](Strategy& s) {
    EXPECT_TRUE((*s.next()).has_value());
    for (size_t p = 0; p < s.parameters(); ++p) {
      for (float& g : s.gradient(p)) g = 1;
      s.ready(p);
    }
    return s.step({.lr = 0.1F, .loss = 1, .samples = 1});
  };
  const auto one = make(), other = make();
  EXPECT_FALSE(one->catch_up()) << "nothing was begun";
  ASSERT_TRUE(step(*one).ok());
  ASSERT_TRUE(other->agree_by([] { return Status(Code::kPeerLost, "somebody is gone"); }).ok());
  const auto before = parameters_of(*other);
  EXPECT_EQ(step(*other).message(), "somebody is gone");
  EXPECT_EQ(other->steps_done(), 0U);
  EXPECT_EQ(parameters_of(*other), before);
  EXPECT_TRUE(other->catch_up());
  EXPECT_EQ(other->steps_done(), 1U);
  EXPECT_EQ(parameters_of(*other), parameters_of(*one));
  EXPECT_FALSE(other->catch_up()) << "twice";
}

}  // namespace
}  // namespace ringfold::sync::mesh_recovery
