// Runs of train() on ranks that are threads, and what they came to; something small to train on.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "tests/train/ranks.h"
#include "train/trainer.h"

namespace ringfold::test {

struct Trained {
  train::Summary summary;
  std::vector<float> parameters;
};

// By rank.
inline std::vector<Trained> train_on(int ranks, const train::Args& args, const train::Dataset& data) {
  std::vector<Trained> all(static_cast<size_t>(ranks));
  on_ranks(ranks, [&](Communicator& comm) {
    auto reporter = train::Reporter::make(args, 1);  // a silent one
    ASSERT_TRUE(reporter.ok());
    Trained& mine = all[static_cast<size_t>(comm.rank())];
    auto summary = train::train(comm, args, data, *reporter, &mine.parameters);
    ASSERT_TRUE(summary.ok()) << summary.status().to_string();
    mine.summary = *summary;
  });
  return all;
}

// All ranks refuse `args`, with a message that holds `word`.
inline void expect_refused(int ranks, const train::Args& args, const train::Dataset& data, const std::string& word) {
  on_ranks(ranks, [&](Communicator& comm) {
    auto reporter = train::Reporter::make(args, 1);
    const auto summary = train::train(comm, args, data, *reporter);
    ASSERT_FALSE(summary.ok()) << word;
    EXPECT_EQ(summary.status().code(), Code::kInvalid);
    EXPECT_NE(summary.status().message().find(word), std::string::npos) << summary.status().message();
  });
}

// The largest difference between two elements of the same place.
inline double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return largest;
}

// Words of a small vocabulary: something to learn within a few steps.
inline std::string make_words(size_t bytes) {
  constexpr const char* kWords[] = {"ring ", "fold ", "rank ", "reduce ", "gather ", "\n"};
  std::mt19937 random(7);
  std::string text;
  while (text.size() < bytes) text += kWords[random() % std::size(kWords)];
  return text;
}

// For windows of 16 bytes.
inline train::Args small_transformer() {
  train::Args args;
  args.model = "transformer";
  args.layers = 2;
  args.width = 32;
  args.heads = 4;
  args.context = 16;
  args.epochs = 1;
  args.batch = 8;
  args.lr = 0.05;
  args.weight_decay = 0;
  args.check_every = 3;
  args.log_every = 4;
  return args;
}

// Noise with a bright bar where the class says: learnable in a few steps, too.
inline train::Images make_images(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  train::Images images;
  for (size_t i = 0; i < count; ++i) {
    const auto label = static_cast<uint8_t>(random() % train::kClasses);
    images.labels.push_back(label);
    for (size_t p = 0; p < train::kImageElems; ++p) {
      const bool bright = p / train::kImageSide / 2 == label;
      images.pixels.push_back(static_cast<uint8_t>(random() % 128 + (bright ? 100 : 0)));
    }
  }
  return images;
}

// Every way of keeping replicas together that lets the ranks of a replica step together: 4 ranks that `args` makes
// two replicas of do what two ranks with whole models do.
inline void expect_replicas_in_other_ways(const train::Args& args, const train::Dataset& data) {
  for (const char* sync : {"zero1", "local", "diloco"}) {
    train::Args shared = args;
    shared.sync = sync;
    shared.local_steps = 3;
    if (shared.sync != "zero1") shared.check_every = 0;
    train::Args alone = shared;
    alone.pipeline = alone.tensor_parallel = 1;
    const auto whole = train_on(2, alone, data);
    for (const Trained& rank : train_on(4, shared, data)) {
      EXPECT_LT(distance(rank.parameters, whole[0].parameters), 1e-5) << sync;
      EXPECT_NEAR(rank.summary.test_loss, whole[0].summary.test_loss, 1e-5) << sync;
    }
  }
}

}  // namespace ringfold::test
