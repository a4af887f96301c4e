// What a rank holds of a model goes into files under the model's numbers, and comes back to whoever holds it next.
#include "train/holding.h"

#include <gtest/gtest.h>

#include <numeric>

namespace ringfold::train {
namespace {

std::vector<float> get(const sync::State& state, const std::string& name, size_t begin, size_t elems) {
  std::vector<float> values(elems, -1);
  const Status got = state.get(name, begin, values);
  EXPECT_TRUE(got.ok()) << got.to_string();
  return values;
}

// A model of 10 elements: layers of 3, 2 and 5, of which the first and the last are one rank's.
const Holding kEnds{.ranges = {{0, 0, 3}, {3, 5, 5}}, .part = "", .place = ", layers 0 2"};
const Holding kMiddle{.ranges = {{0, 3, 2}}, .part = "", .place = ", layers 1"};
const Holding kWhole{.ranges = {{0, 0, 3}, {3, 3, 2}, {5, 5, 5}}, .part = "", .place = ""};

sync::State state_of(std::vector<float> values, size_t cut) {
  sync::State state;
  state.add("parameters", 0, std::span(values).first(cut));  // in two pieces, as two ranks would
  state.add("parameters", cut, std::span(values).subspan(cut));
  state.numbers["updates"] = 7;
  state.blobs["error feedback of rank 0"] = std::to_string(values.size());
  return state;
}

TEST(Holdings, MakeOneModelOfPartsThatAnyOtherPartsCanBeTakenFrom) {
  for (size_t cut = 0; cut <= 8; ++cut) {
    sync::State file = kEnds.to_file(state_of({0, 1, 2, 5, 6, 7, 8, 9}, cut));
    file.merge(kMiddle.to_file(state_of({3, 4}, cut % 2)));
    std::vector<float> all(10);
    std::iota(all.begin(), all.end(), 0.0F);
    EXPECT_EQ(get(file, "parameters", 0, 10), all) << cut;
    EXPECT_EQ(get(kWhole.from_files(file), "parameters", 0, 10), all);
    EXPECT_EQ(get(kMiddle.from_files(file), "parameters", 0, 2), (std::vector<float>{3, 4}));
    EXPECT_EQ(get(kEnds.from_files(file), "parameters", 0, 8), (std::vector<float>{0, 1, 2, 5, 6, 7, 8, 9}));
    EXPECT_EQ(kWhole.from_files(file).numbers.at("updates"), 7U);
    const Holding shifted{.ranges = {{0, 2, 4}}, .part = "", .place = ", layers of nobody"};
    EXPECT_EQ(get(shifted.from_files(file), "parameters", 0, 4), (std::vector<float>{2, 3, 4, 5}));
  }
}

TEST(Holdings, KeepApartWhatBelongsToOnePlaceOnly) {
  sync::State file = kEnds.to_file(state_of({0, 1, 2, 5, 6, 7, 8, 9}, 4));
  file.merge(kMiddle.to_file(state_of({3, 4}, 1)));
  EXPECT_EQ(kEnds.from_files(file).blobs, (std::map<std::string, std::string>{{"error feedback of rank 0", "8"}}));
  EXPECT_EQ(kMiddle.from_files(file).blobs, (std::map<std::string, std::string>{{"error feedback of rank 0", "2"}}));
  EXPECT_FALSE(kWhole.from_files(file).blobs.contains("error feedback of rank 0"));
}

TEST(Holdings, OfPartsOfLayersAreVectorsOfTheirOwn) {
  const Holding first{.ranges = {{0, 0, 2}}, .part = ", part 1 of 2", .place = ""};
  const Holding second{.ranges = {{0, 0, 2}}, .part = ", part 2 of 2", .place = ""};
  sync::State file = first.to_file(state_of({1, 2}, 1));
  file.merge(second.to_file(state_of({3, 4}, 1)));
  EXPECT_EQ(get(first.from_files(file), "parameters", 0, 2), (std::vector<float>{1, 2}));
  EXPECT_EQ(get(second.from_files(file), "parameters", 0, 2), (std::vector<float>{3, 4}));
  EXPECT_FALSE(file.has("parameters"));
}

}  // namespace
}  // namespace ringfold::train
