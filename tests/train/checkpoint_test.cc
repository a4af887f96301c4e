// Checkpoints on disk: whole or not there, and of the run that goes on.
#include "train/checkpoint.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/train/ranks.h"

namespace ringfold::train {
namespace {

namespace fs = std::filesystem;

class Checkpoints : public testing::Test {
 protected:
  Checkpoints() {
    std::string name = fs::temp_directory_path() / "ringfold-checkpoint-XXXXXX";
    folder_ = mkdtemp(name.data());
  }
  ~Checkpoints() override { fs::remove_all(folder_); }

  // Every rank's share is one element, its rank; `steps`: a checkpoint after each.
  void write(int ranks, const std::vector<size_t>& steps, const Identity& identity = kRun) {
    test::on_ranks(ranks, [&](Communicator& comm) {
      Checkpointer writer(comm, folder_, identity);
      for (size_t step : steps) {
        sync::State state;
        const float value = static_cast<float>(comm.rank()) + static_cast<float>(step);
        state.add("v", static_cast<size_t>(comm.rank()), std::span(&value, 1));
        const Status begun = writer.begin(std::move(state), {.step = step, .epoch = 3, .in_epoch = 1});
        ASSERT_TRUE(begun.ok()) << begun.to_string();
      }
      const Status complete = writer.advance(true);
      ASSERT_TRUE(complete.ok()) << complete.to_string();
      ASSERT_TRUE(comm.barrier().wait().ok());
    });
  }
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const auto& entry : fs::directory_iterator(folder_)) all.push_back(entry.path().filename());
    std::sort(all.begin(), all.end());
    return all;
  }
  Result<std::optional<Loaded>> load(const Identity& identity = kRun) {
    Result<std::optional<Loaded>> result = std::optional<Loaded>();
    test::on_ranks(2, [&](Communicator& comm) {
      auto mine = load_checkpoint(comm, folder_, identity);
      if (comm.rank() == 1) result = std::move(mine);
    });
    return result;
  }

  static inline const Identity kRun = {{"--model", "cnn"}, {"--batch", "256"}};
  std::string folder_;
};

TEST_F(Checkpoints, HoldEveryRanksShareAndThePlace) {
  write(3, {7});
  auto loaded = load();
  ASSERT_TRUE(loaded.ok()) << loaded.status().to_string();
  ASSERT_TRUE(loaded->has_value());
  EXPECT_EQ((*loaded)->ranks, 3);
  EXPECT_EQ((*loaded)->position.step, 7U);
  EXPECT_EQ((*loaded)->position.epoch, 3);
  EXPECT_EQ((*loaded)->position.in_epoch, 1U);
  std::vector<float> v(3);
  ASSERT_TRUE((*loaded)->state.get("v", 0, v).ok());
  EXPECT_EQ(v, (std::vector<float>{7, 8, 9}));
}

TEST_F(Checkpoints, AreKeptTwo) {
  write(2, {5, 10, 15, 100});
  EXPECT_EQ(names(), (std::vector<std::string>{"step-00000015", "step-00000100"}));
  EXPECT_EQ((*load())->position.step, 100U);
}

TEST_F(Checkpoints, ThatAreNotCompleteAreNotThere) {
  EXPECT_FALSE(load()->has_value());
  fs::create_directories(folder_ + "/step-00000020.part");
  fs::create_directories(folder_ + "/step-00000030");  // no manifest
  EXPECT_FALSE(load()->has_value());
  write(2, {10});
  EXPECT_EQ((*load())->position.step, 10U);
}

TEST_F(Checkpoints, DamagedOnesAreNamed) {
  write(2, {10});
  const std::string file = folder_ + "/step-00000010/rank-1";
  {
    std::fstream out(file, std::ios::in | std::ios::out | std::ios::binary);
    out.seekp(static_cast<long>(fs::file_size(file)) - 20);
    out.put('\x55');
  }
  Status status = load().status();
  EXPECT_EQ(status.code(), Code::kInvalid);
  EXPECT_NE(status.message().find("rank-1 is damaged"), std::string::npos) << status.message();
  fs::remove(file);
  EXPECT_EQ(load().status().code(), Code::kIo);
  std::ofstream(folder_ + "/step-00000010/manifest.json") << "{\"format\": 1";
  status = load().status();
  EXPECT_NE(status.message().find("manifest.json is damaged"), std::string::npos) << status.message();
}

TEST_F(Checkpoints, OfAnotherRunAreRefused) {
  write(2, {10});
  const Status status = load({{"--model", "cnn"}, {"--batch", "128"}}).status();
  EXPECT_EQ(status.code(), Code::kInvalid);
  EXPECT_NE(status.message().find("--batch 256, and this one has 128"), std::string::npos) << status.message();
}

TEST_F(Checkpoints, ThatCannotBeWrittenEndTheRunWithTheReason) {
  std::ofstream(folder_ + "/file") << "no folder";
  test::on_ranks(1, [&](Communicator& comm) {
    Checkpointer writer(comm, folder_ + "/file", kRun);
    ASSERT_TRUE(writer.begin({}, {.step = 1}).ok());
    const Status status = writer.advance(true);
    EXPECT_EQ(status.code(), Code::kIo);
    EXPECT_NE(status.message().find(folder_ + "/file"), std::string::npos) << status.message();
  });
}

}  // namespace
}  // namespace ringfold::train
