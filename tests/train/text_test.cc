// Text as samples: windows that lie one after another, and a last tenth that training never sees.
#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "tests/tools/command.h"
#include "train/dataset.h"

namespace ringfold::train {
namespace {

std::string numbered(size_t bytes) {
  std::string text;
  for (size_t i = 0; i < bytes; ++i) text += static_cast<char>(i * i % 251);
  return text;
}

TEST(Text, WindowsCoverEachPartOnceAndTargetsAreTheNextBytes) {
  const size_t context = 7;
  for (const size_t bytes : {80U, 90U, 1000U, 1003U}) {
    const std::string text = numbered(bytes);
    const auto data = split_text(text, context);
    ASSERT_TRUE(data.ok()) << data.status().to_string();
    const size_t cut = bytes - bytes / 10;
    EXPECT_EQ(data->train.size(), (cut - 1) / context);
    EXPECT_EQ(data->test.size(), (bytes - cut - 1) / context);
    EXPECT_EQ(data->train.input_dims(), std::vector<int64_t>{7});
    EXPECT_EQ(data->train.targets(), context);
    const auto check = [&](const Samples& samples, size_t begin, size_t end) {
      for (uint32_t s = 0; s < samples.size(); ++s) {
        std::vector<int64_t> inputs(context), targets(context);
        samples.fill(std::span(&s, 1), inputs.data(), targets.data());
        for (size_t i = 0; i < context; ++i) {
          const size_t at = begin + s * context + i;
          ASSERT_LT(at + 1, end);
          EXPECT_EQ(inputs[i], static_cast<uint8_t>(text[at]));
          EXPECT_EQ(targets[i], static_cast<uint8_t>(text[at + 1]));
        }
      }
    };
    check(data->train, 0, cut);
    check(data->test, cut, bytes);
  }
}

TEST(Text, SamplesComeInTheOrderThatIsAskedFor) {
  const auto data = split_text(numbered(1000), 5);
  ASSERT_TRUE(data.ok());
  const std::vector<uint32_t> order = {17, 0, 17, 3};
  std::vector<int64_t> inputs(20), targets(20), one(5), next(5);
  data->train.fill(order, inputs.data(), targets.data());
  for (size_t k = 0; k < order.size(); ++k) {
    data->train.fill(std::span(&order[k], 1), one.data(), next.data());
    EXPECT_TRUE(std::equal(one.begin(), one.end(), inputs.begin() + static_cast<long>(k * 5)));
    EXPECT_TRUE(std::equal(next.begin(), next.end(), targets.begin() + static_cast<long>(k * 5)));
  }
}

TEST(Text, ALimitTakesTheFirstWindowsOfBothParts) {
  const auto all = split_text(numbered(1000), 5), some = split_text(numbered(1000), 5, 3);
  ASSERT_TRUE(some.ok());
  EXPECT_EQ(some->train.size(), 3U);
  EXPECT_EQ(some->test.size(), 3U);
  const std::vector<uint32_t> order = {0, 1, 2};
  for (const auto part : {&Dataset::train, &Dataset::test}) {
    std::vector<int64_t> a(15), b(15), next(15);
    ((*all).*part).fill(order, a.data(), next.data());
    ((*some).*part).fill(order, b.data(), next.data());
    EXPECT_EQ(a, b);
  }
  EXPECT_NE(all->train.digest(), some->train.digest());
  EXPECT_EQ(split_text(numbered(1000), 5, 1000)->train.digest(), all->train.digest());
}

TEST(Text, WhatIsTooShortOrMissingIsRefused) {
  for (const size_t bytes : {0U, 1U, 50U, 79U})
    EXPECT_EQ(split_text(numbered(bytes), 7).status().code(), Code::kInvalid) << bytes;
  const test::Folder folder;
  const auto refused = [&](const std::string& path, Code code) {
    const auto data = load_text(path, 7);
    ASSERT_FALSE(data.ok());
    EXPECT_EQ(data.status().code(), code) << data.status().to_string();
    EXPECT_NE(data.status().message().find(path), std::string::npos) << data.status().message();
  };
  refused("/nowhere", Code::kIo);
  refused(folder.path(), Code::kIo);
  refused(folder.write("short", "short", 0600), Code::kInvalid);
  const auto data = load_text(folder.write("text", numbered(1000), 0600), 7);
  ASSERT_TRUE(data.ok()) << data.status().to_string();
  EXPECT_EQ(data->train.digest(), split_text(numbered(1000), 7)->train.digest());
}

TEST(Text, TheBibleIsWhole) {
  if (!std::filesystem::exists("/usr/bin/bible")) GTEST_SKIP() << "install bible-kjv and bible-kjv-text";
  const auto data = load_text("", 128);
  ASSERT_TRUE(data.ok()) << data.status().to_string();
  EXPECT_EQ(data->train.size(), (3963971U - 1) / 128);
  EXPECT_EQ(data->test.size(), (440441U - 1) / 128);
  std::vector<int64_t> bytes(128), next(128);
  const uint32_t first = 0;
  data->train.fill(std::span(&first, 1), bytes.data(), next.data());
  EXPECT_EQ(std::string(bytes.begin(), bytes.begin() + 30), "Ge1:1 In the beginning God cre");
}

TEST(Images, DigestTellsDataApart) {
  Images a;
  a.labels = {1, 2};
  a.pixels.assign(2 * kImageElems, 5);
  Images b = a, c = a;
  b.labels[1] = 3;
  c.pixels[700] = 6;
  std::set<std::string> all = {Samples(a).digest(), Samples(b).digest(), Samples(c).digest()};
  EXPECT_EQ(all.size(), 3U);
  EXPECT_EQ(Samples(a).digest().size(), 64U);
}

}  // namespace
}  // namespace ringfold::train
