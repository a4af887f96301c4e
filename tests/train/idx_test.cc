#include "train/idx.h"

#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <string>

#include "train/dataset.h"

namespace ringfold::train {
namespace {

using Bytes = std::vector<uint8_t>;

class IdxFile : public testing::Test {
 protected:
  IdxFile() {
    std::string name = std::filesystem::temp_directory_path() / "ringfold-idx-XXXXXX";
    dir_ = mkdtemp(name.data());
  }
  ~IdxFile() override { std::filesystem::remove_all(dir_); }

  std::string write(const std::string& name, const Bytes& bytes) {
    std::ofstream(dir_ + "/" + name, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return dir_ + "/" + name;
  }
  static Bytes gzip(const std::string& path, const Bytes& bytes) {
    gzFile file = gzopen(path.c_str(), "wb");
    gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size()));
    gzclose(file);
    std::ifstream in(path, std::ios::binary);
    return Bytes(std::istreambuf_iterator<char>(in), {});
  }
  static Bytes idx(std::vector<uint32_t> dims, size_t elems, uint8_t first = 0) {
    Bytes bytes = {0, 0, 8, static_cast<uint8_t>(dims.size())};
    for (uint32_t d : dims) {
      for (int shift : {24, 16, 8, 0}) bytes.push_back(static_cast<uint8_t>(d >> shift));
    }
    for (size_t i = 0; i < elems; ++i) bytes.push_back(static_cast<uint8_t>(first + i));
    return bytes;
  }
  static void expect_error(const Result<IdxArray>& array, Code code, const std::string& part) {
    ASSERT_FALSE(array.ok());
    EXPECT_EQ(array.status().code(), code);
    EXPECT_NE(array.status().message().find(part), std::string::npos) << array.status().to_string();
  }

  std::string dir_;
};

TEST_F(IdxFile, IsReadPlainAndCompressed) {
  const Bytes bytes = idx({2, 3, 2}, 12, 7);
  for (const std::string& path : {write("plain", bytes), write("packed.gz", gzip(dir_ + "/z", bytes))}) {
    auto array = read_idx(path, 3);
    ASSERT_TRUE(array.ok()) << array.status().to_string();
    EXPECT_EQ(array->dims, (std::vector<size_t>{2, 3, 2}));
    EXPECT_EQ(array->elems, Bytes(bytes.begin() + 16, bytes.end()));
  }
}

TEST_F(IdxFile, MayBeEmptyOfElements) {
  auto array = read_idx(write("none", idx({0}, 0)), 1);
  ASSERT_TRUE(array.ok()) << array.status().to_string();
  EXPECT_TRUE(array->elems.empty());
}

TEST_F(IdxFile, ThatIsMissingIsNamed) { expect_error(read_idx(dir_ + "/nowhere", 1), Code::kIo, "nowhere"); }

TEST_F(IdxFile, OfAnotherKindIsRefusedWithWhatItBeginsWith) {
  expect_error(read_idx(write("png", {0x89, 'P', 'N', 'G', 0, 0, 0, 0, 0}), 1), Code::kInvalid, "0x89504e47");
  expect_error(read_idx(write("rank", idx({2, 2}, 4)), 3), Code::kInvalid, "3 dimensions");
  Bytes floats = idx({2}, 8);
  floats[2] = 0x0d;
  expect_error(read_idx(write("floats", floats), 1), Code::kInvalid, "0x00000d01");
}

TEST_F(IdxFile, CutAnywhereIsRefused) {
  const Bytes bytes = idx({2, 3}, 6);
  for (size_t length = 0; length < bytes.size(); ++length) {
    auto array = read_idx(write("cut", Bytes(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(length))), 2);
    expect_error(array, Code::kInvalid, length < 12 ? "header" : "truncated");
  }
}

TEST_F(IdxFile, CompressedAndCutIsRefused) {
  const Bytes packed = gzip(dir_ + "/z", idx({100, 100}, 10000));
  for (size_t length : {packed.size() - 1, packed.size() - 8, packed.size() / 2, size_t{20}, size_t{11}}) {
    auto array = read_idx(write("cut.gz", Bytes(packed.begin(), packed.begin() + static_cast<ptrdiff_t>(length))), 2);
    ASSERT_FALSE(array.ok()) << length;
    EXPECT_EQ(array.status().code(), Code::kInvalid) << array.status().to_string();
  }
}

TEST_F(IdxFile, CompressedAndDamagedIsRefused) {
  const Bytes packed = gzip(dir_ + "/z", idx({100, 100}, 10000));
  for (size_t at = 12; at < packed.size(); at += 7) {  // past the gzip header, whose time stamp nobody checks
    Bytes damaged = packed;
    damaged[at] ^= 0x10;
    auto array = read_idx(write("bad.gz", damaged), 2);
    ASSERT_FALSE(array.ok()) << at;
    EXPECT_EQ(array.status().code(), Code::kInvalid) << array.status().to_string();
  }
}

TEST_F(IdxFile, LongerThanItClaimsIsRefused) {
  expect_error(read_idx(write("long", idx({5}, 6)), 1), Code::kInvalid, "longer");
}

TEST_F(IdxFile, ThatClaimsAbsurdSizesIsRefusedWithoutAskingForMemory) {
  expect_error(read_idx(write("huge", idx({0xffffffff, 0xffffffff, 0xffffffff}, 3)), 3), Code::kInvalid, "claims");
}

class Folder : public IdxFile {
 protected:
  void fill(uint32_t images, uint32_t labels, uint32_t side = 28) {
    for (const std::string set : {"train", "t10k"}) {
      write(set + "-images-idx3-ubyte", idx({images, side, side}, size_t{images} * side * side));
      Bytes l = idx({labels}, 0);
      for (uint32_t i = 0; i < labels; ++i) l.push_back(static_cast<uint8_t>(i % kClasses));
      write(set + "-labels-idx1-ubyte", l);
    }
  }
  void expect_refused(const std::string& part) {
    auto data = load_fashion_mnist(dir_);
    ASSERT_FALSE(data.ok());
    EXPECT_NE(data.status().message().find(part), std::string::npos) << data.status().to_string();
  }
};

TEST_F(Folder, WithoutTheFilesSaysWhichPackageHasThem) { expect_refused("dataset-fashion-mnist"); }

TEST_F(Folder, WithUnequalCountsIsRefused) {
  fill(11, 12);
  expect_refused("11 train images but 12 labels");
}

TEST_F(Folder, WithOtherImageSizesIsRefused) {
  fill(2, 2, 27);
  expect_refused("27 x 27");
}

TEST_F(Folder, WithAnUnknownClassIsRefused) {
  fill(2, 2);
  write("train-labels-idx1-ubyte", idx({2}, 2, 9));
  expect_refused("label 1 is 10");
}

TEST_F(Folder, IsLoadedUpToTheLimitAndScaled) {
  fill(20, 20);
  auto data = load_fashion_mnist(dir_, 12);
  ASSERT_TRUE(data.ok()) << data.status().to_string();
  EXPECT_EQ(data->train.size(), 12U);
  EXPECT_EQ(data->test.size(), 12U);
  std::vector<float> pixels(2 * kImageElems);
  std::vector<int64_t> labels(2);
  const std::vector<uint32_t> samples = {11, 3};
  data->train.fill(samples, pixels.data(), labels.data());
  EXPECT_EQ(labels, (std::vector<int64_t>{1, 3}));
  for (size_t i = 0; i < 2; ++i) {
    for (size_t p = 0; p < kImageElems; ++p) {
      const double expected = (static_cast<uint8_t>(samples[i] * kImageElems + p) / 255.0 - 0.2860) / 0.3530;
      ASSERT_NEAR(pixels[i * kImageElems + p], expected, 1e-6);
    }
  }
}

TEST(FashionMnist, HasTheKnownSizesAndEvenClasses) {
  const std::string dir = "/usr/share/datasets/fashion-mnist";
  if (!std::filesystem::exists(dir)) GTEST_SKIP() << dir << " is missing: install dataset-fashion-mnist";
  auto data = load_fashion_mnist(dir);
  ASSERT_TRUE(data.ok()) << data.status().to_string();
  for (const auto& [images, per_class] : {std::pair(&data->train, 6000), std::pair(&data->test, 1000)}) {
    ASSERT_EQ(images->size(), static_cast<size_t>(per_class) * kClasses);
    std::vector<uint32_t> all(images->size());
    std::iota(all.begin(), all.end(), 0U);
    std::vector<float> pixels(all.size() * kImageElems);
    std::vector<int64_t> labels(all.size());
    images->fill(all, pixels.data(), labels.data());
    std::vector<int> counts(kClasses);
    for (int64_t label : labels) ++counts[static_cast<size_t>(label)];
    EXPECT_EQ(counts, std::vector<int>(kClasses, per_class));
  }
}

}  // namespace
}  // namespace ringfold::train
