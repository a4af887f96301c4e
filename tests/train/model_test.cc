// The models as functions, their parts on several ranks, and the files that hold them.
#include "train/model.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/types.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <mutex>

#include "tests/tools/command.h"
#include "tests/train/ranks.h"
#include "train/export.h"
#include "train/predictor.h"
#include "train/trainer.h"

namespace ringfold::train {
namespace {

using torch::Tensor;

const ModelSpec kSmall = {"transformer", 2, 32, 4, 12};

Tensor some_bytes(int64_t n, int64_t t, uint64_t salt = 1) {
  return (torch::arange(n * t, torch::kLong).add(static_cast<int64_t>(salt)) * 7919).remainder(251).view({n, t});
}
Tensor some_images(int64_t n) { return (torch::arange(n * 784, torch::kFloat) * 0.37).sin().view({n, 1, 28, 28}); }

Tensor input_for(const ModelSpec& spec, int64_t n) {
  return spec.is_text() ? some_bytes(n, spec.context) : some_images(n);
}

double largest(const Tensor& x) { return x.abs().max().item<double>(); }

class Kinds : public testing::TestWithParam<const char*> {
 protected:
  ModelSpec spec() const { return {GetParam(), kSmall.layers, kSmall.width, kSmall.heads, kSmall.context}; }
};
INSTANTIATE_TEST_SUITE_P(Models, Kinds, testing::Values("mlp", "cnn", "transformer"));

TEST_P(Kinds, NoSampleSeesAnother) {
  use_one_thread();
  at::NoGradGuard no_grad;
  const auto model = make_model(spec(), 3);
  const Tensor inputs = input_for(spec(), 5), together = model->forward(inputs);
  for (int64_t i = 0; i < 5; ++i)
    EXPECT_LT(largest(model->forward(inputs.narrow(0, i, 1)) - together.narrow(0, i, 1)), 1e-5);
}

TEST_P(Kinds, ParametersDependOnTheSeedAlone) {
  const auto a = make_model(spec(), 3)->parameters(), b = make_model(spec(), 3)->parameters(),
             c = make_model(spec(), 4)->parameters();
  bool differ = false;
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_TRUE(a[i].equal(b[i]));
    differ = differ || !a[i].equal(c[i]);
  }
  EXPECT_TRUE(differ);
}

TEST_P(Kinds, AllParametersAreThoseOfTheModuleInItsOrder) {
  const auto model = make_model(spec(), 3);
  const auto named = model->named_parameters().items();
  const auto all = model->all_parameters();
  ASSERT_EQ(named.size(), all.size());
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(named[i].key(), all[i].name);
    EXPECT_TRUE(named[i].value().is_same(all[i].local));
  }
}

TEST_P(Kinds, ALayerIsTheSameWhereverTheOthersAre) {
  at::NoGradGuard no_grad;
  const auto whole = make_model(spec(), 3);
  Tensor x = input_for(spec(), 2);
  for (size_t i = 0; i < whole->layers().size(); ++i) {
    const auto piece = make_model(spec(), 3, nullptr, {.here = [i](size_t layer) { return layer == i; }});
    ASSERT_EQ(piece->layers().size(), whole->layers().size());
    for (size_t k = 0; k < piece->layers().size(); ++k) EXPECT_EQ(piece->layers()[k] != nullptr, k == i);
    const auto& expected = whole->layers()[i]->own_parameters();
    const auto here = piece->all_parameters();
    ASSERT_EQ(here.size(), expected.size());
    for (size_t k = 0; k < here.size(); ++k) EXPECT_TRUE(here[k].local.equal(expected[k].local)) << here[k].name;
    ASSERT_EQ(piece->forms().size(), whole->forms().size());
    for (size_t k = 0; k < piece->forms().size(); ++k) EXPECT_EQ(piece->forms()[k].whole, whole->forms()[k].whole);
    EXPECT_EQ(piece->named_parameters().size(), here.size());
    x = piece->layers()[i]->forward(x);
    EXPECT_EQ(x.sizes().slice(1).vec(), piece->gives()[i]);
  }
}

TEST(Transformer, NoBytesLaterThanItsOwnChangeAPrediction) {
  at::NoGradGuard no_grad;
  const auto model = make_model(kSmall, 3);
  const Tensor first = some_bytes(2, 12), before = model->forward(first);
  for (int64_t changed = 1; changed < 12; ++changed) {
    Tensor other = first.clone();
    other.narrow(1, changed, 12 - changed).add_(1);
    const Tensor after = model->forward(other);
    EXPECT_LT(largest((after - before).narrow(1, 0, changed)), 1e-6);
    EXPECT_GT(largest((after - before).narrow(1, changed, 1)), 1e-4) << "its own byte does";
  }
}

TEST(Transformer, StartsWithoutAPreference) {
  at::NoGradGuard no_grad;
  const Tensor x = some_bytes(4, 12);
  const double nats = loss_sum(make_model(kSmall, 3)->forward(x), x).item<double>() / 48;
  EXPECT_NEAR(nats, std::log(256.0), 0.05);
}

TEST(Transformer, PartsOnSeveralRanksHaveTheLossAndGradientsOfTheWhole) {
  use_one_thread();
  const Tensor x = some_bytes(3, 12), y = some_bytes(3, 12, 5);
  const auto whole = make_model(kSmall, 3);
  const Tensor whole_loss = loss_sum(whole->forward(x), y);
  whole_loss.backward();
  const auto expected = whole->all_parameters();
  for (int ranks : {2, 4}) {
    test::on_ranks(ranks, [&](Communicator& comm) {
      TensorGroup group(comm);
      const auto part = make_model(kSmall, 3, &group);
      const Tensor loss = loss_sum(part->forward(x), y);
      loss.backward();
      EXPECT_NEAR(loss.item<double>(), whole_loss.item<double>(), 1e-4);
      int split = 0;
      const auto all = part->all_parameters();
      ASSERT_EQ(all.size(), expected.size());
      for (size_t i = 0; i < all.size(); ++i) {
        const auto slice = [&](const Tensor& t) { return all[i].split < 0 ? t : own_part(t, all[i].split, group); };
        EXPECT_EQ(all[i].name, expected[i].name);
        EXPECT_TRUE(all[i].local.equal(slice(expected[i].local))) << all[i].name;
        const double scale = largest(expected[i].local.grad());
        EXPECT_LT(largest(all[i].local.grad() - slice(expected[i].local.grad())), 1e-5 * scale + 1e-6)
            << all[i].name << " on rank " << comm.rank() << " of " << ranks;
        split += all[i].split >= 0;
      }
      EXPECT_EQ(split, 1 + 2 * 6 + 1) << "the large ones are shared";
      at::NoGradGuard no_grad;
      const auto gathered = whole_parameters(*part);
      for (size_t i = 0; i < all.size(); ++i) EXPECT_TRUE(gathered[i].equal(expected[i].local)) << all[i].name;
    });
  }
}

TEST(Transformer, APeerThatLeavesInTheMiddleOfALayerIsNamed) {
  test::on_ranks(
      2,
      [&](Communicator& comm) {
        TensorGroup group(comm);
        const auto part = make_model(kSmall, 3, &group);
        const auto forward = [&] { return loss_sum(part->forward(some_bytes(3, 12)), some_bytes(3, 12, 5)); };
        if (comm.rank() == 1) {
          forward();  // rank 0 may still be in it when this one has gone
          return comm.abort("had enough");
        }
        try {
          forward().backward();
          FAIL() << "backward came to an end alone";
        } catch (const CommunicationError& e) {
          ASSERT_TRUE(e.status().verdict()) << e.what();
          EXPECT_EQ(e.status().verdict()->rank, 1) << e.what();
          EXPECT_NE(std::string(e.what()).find("had enough"), std::string::npos) << e.what();
        }
      },
      20);
}

// ---- files ----

About about_of(const ModelSpec& spec) {
  About about{.model = spec, .data = "made-up \"data\"", .data_digest = "abc", .train_samples = 5, .test_samples = 6};
  about.lr = 0.1;
  about.test_accuracy = 0.875;
  return about;
}

TEST_P(Kinds, ASavedModelIsLoadedBitForBit) {
  const test::Folder folder;
  const std::string path = folder.path() + "/model.rf";
  const auto model = make_model(spec(), 3);
  ASSERT_TRUE(save_model(path, *model, whole_parameters(*model), about_of(spec())).ok());
  EXPECT_EQ(folder.entries(), std::vector<std::string>{"model.rf"});
  auto loaded = load_model(path);
  ASSERT_TRUE(loaded.ok()) << loaded.status().to_string();
  EXPECT_EQ(to_json(loaded->about), to_json(about_of(spec())));
  const auto a = model->parameters(), b = loaded->model->parameters();
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(a[i].equal(b[i]));
}

TEST(ModelFile, WhatIsNoModelIsRefusedWithTheReason) {
  const test::Folder folder;
  const auto refused = [&](const std::string& path, Code code, const std::string& word) {
    const auto loaded = load_model(path);
    ASSERT_FALSE(loaded.ok()) << path;
    EXPECT_EQ(loaded.status().code(), code) << loaded.status().to_string();
    EXPECT_NE(loaded.status().message().find(word), std::string::npos) << loaded.status().message();
    EXPECT_NE(loaded.status().message().find(path), std::string::npos) << loaded.status().message();
  };
  refused(folder.path() + "/nothing", Code::kIo, "no such file");
  refused(folder.path(), Code::kIo, "no such file");
  refused(folder.write("empty", "", 0600), Code::kInvalid, "cannot read");
  refused(folder.write("text", "a model, really", 0600), Code::kInvalid, "cannot read");

  const std::string good = folder.path() + "/good", path = folder.path() + "/model";
  const auto model = make_model(kSmall, 3);
  ASSERT_TRUE(save_model(good, *model, whole_parameters(*model), about_of(kSmall)).ok());
  const std::string bytes = test::read_file(good);
  refused(folder.write("half", bytes.substr(0, bytes.size() / 2), 0600), Code::kInvalid, "cannot read");
  About other = about_of(kSmall);
  other.model.layers = 3;
  ASSERT_TRUE(save_model(path, *model, whole_parameters(*model), other).ok());
  refused(path, Code::kInvalid, "3.");  // the head of two layers stands where the third layer would
  other.model = kSmall;
  other.model.width = 64;
  ASSERT_TRUE(save_model(path, *model, whole_parameters(*model), other).ok());
  refused(path, Code::kInvalid, "another shape");
  other.model.heads = 7;
  ASSERT_TRUE(save_model(path, *model, whole_parameters(*model), other).ok());
  refused(path, Code::kInvalid, "--heads 7");
}

TEST(ModelFile, AFolderThatDoesNotExistIsAnError) {
  const auto model = make_model({"mlp"}, 3);
  const Status status = save_model("/nowhere/at/all", *model, whole_parameters(*model), about_of({"mlp"}));
  EXPECT_EQ(status.code(), Code::kIo) << status.to_string();
  EXPECT_NE(status.message().find("/nowhere/at/all"), std::string::npos);
}

// ---- TorchScript ----

TEST_P(Kinds, TheExportedFileAnswersAsTheModelDoes) {
  use_one_thread();
  const test::Folder folder;
  const std::string path = folder.path() + "/model.rf", script = folder.path() + "/model.pt";
  const auto model = make_model(spec(), 3);
  ASSERT_TRUE(save_model(path, *model, whole_parameters(*model), about_of(spec())).ok());
  const auto exported = export_model(path, script);
  ASSERT_TRUE(exported.ok()) << exported.status().to_string();
  EXPECT_EQ(exported->card_path, folder.path() + "/model.card.md");
  const std::string card = test::read_file(exported->card_path);
  for (const std::string& word : {exported->digest, std::string("made-up"), std::string("87.5")})
    EXPECT_NE(card.find(word), std::string::npos) << card;

  const auto predictor = Predictor::load(script, exported->digest);
  ASSERT_TRUE(predictor.ok()) << predictor.status().to_string();
  EXPECT_EQ(to_json(predictor->about()), to_json(about_of(spec())));
  at::NoGradGuard no_grad;
  if (!spec().is_text()) {
    const Tensor grey = (some_images(3) * 127 + 128).round();
    const auto expected = at::softmax(model->forward((grey / 255 - kPixelMean) / kPixelDeviation), 1);
    const auto got = predictor->classify(std::span(grey.data_ptr<float>(), 3 * kImageElems));
    ASSERT_TRUE(got.ok()) << got.status().to_string();
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t c = 0; c < kClasses; ++c)
        EXPECT_NEAR((*got)[static_cast<size_t>(i)][static_cast<size_t>(c)], expected[i][c].item<float>(), 1e-5);
    }
    EXPECT_EQ(predictor->go_on("a", {}).status().code(), Code::kInvalid);
    EXPECT_EQ(predictor->score("ab").status().code(), Code::kInvalid);
    EXPECT_EQ(predictor->classify(std::span(grey.data_ptr<float>(), 100)).status().code(), Code::kInvalid);
    EXPECT_EQ(predictor->classify({}).status().code(), Code::kInvalid);
    return;
  }
  // A text of four whole windows and a shorter one, scored by hand.
  std::string text;
  for (int i = 0; i < 4 * 12 + 6; ++i) text += static_cast<char>('a' + i * i % 23);
  double nats = 0;
  for (size_t begin = 0; begin + 1 < text.size(); begin += 12) {
    const size_t n = std::min<size_t>(12, text.size() - 1 - begin);
    Tensor x = at::empty({1, static_cast<int64_t>(n)}, at::kLong), y = at::empty_like(x);
    for (size_t i = 0; i < n; ++i) {
      x[0][static_cast<int64_t>(i)] = text[begin + i];
      y[0][static_cast<int64_t>(i)] = text[begin + i + 1];
    }
    nats += loss_sum(model->forward(x), y).item<double>();
  }
  const auto score = predictor->score(text);
  ASSERT_TRUE(score.ok()) << score.status().to_string();
  EXPECT_NEAR(*score, nats / std::log(2.0) / static_cast<double>(text.size() - 1), 1e-4);

  // The likeliest byte each time, from at most the last 12.
  std::string by_hand = "In the beginning";
  for (int i = 0; i < 20; ++i) {
    const std::string last = by_hand.substr(by_hand.size() - 12);
    Tensor x = at::empty({1, 12}, at::kLong);
    for (int64_t k = 0; k < 12; ++k) x[0][k] = static_cast<uint8_t>(last[static_cast<size_t>(k)]);
    by_hand += static_cast<char>(model->forward(x)[0][-1].argmax().item<int64_t>());
  }
  const auto likeliest = predictor->go_on("In the beginning", {.bytes = 20});
  ASSERT_TRUE(likeliest.ok()) << likeliest.status().to_string();
  EXPECT_EQ("In the beginning" + *likeliest, by_hand);

  const auto drawn = [&](uint64_t seed) {
    return *predictor->go_on("In the beginning", {.bytes = 20, .temperature = 1, .seed = seed});
  };
  EXPECT_EQ(drawn(1), drawn(1));
  EXPECT_NE(drawn(1), drawn(2));
  EXPECT_EQ(*predictor->go_on("In the beginning", {.bytes = 20, .temperature = 1e-4}), *likeliest);
  EXPECT_EQ(predictor->go_on("", {}).status().code(), Code::kInvalid);
  EXPECT_EQ(predictor->go_on("a", {.temperature = -1}).status().code(), Code::kInvalid);
  EXPECT_EQ(predictor->score("a").status().code(), Code::kInvalid);
  const std::atomic<bool> stop = true;
  EXPECT_EQ(predictor->go_on("a", {}, &stop).status().code(), Code::kAborted);
}

TEST(ExportedFile, WhatIsNoneIsRefusedWithTheReason) {
  const test::Folder folder;
  const std::string model = folder.path() + "/model", script = folder.path() + "/model.pt";
  const auto made = make_model({"mlp"}, 3);
  ASSERT_TRUE(save_model(model, *made, whole_parameters(*made), about_of({"mlp"})).ok());
  const auto refused = [&](const Status& status, Code code, const std::string& word) {
    EXPECT_EQ(status.code(), code) << status.to_string();
    EXPECT_NE(status.message().find(word), std::string::npos) << status.message();
  };
  refused(export_model(folder.path() + "/none", script).status(), Code::kIo, "none");
  refused(export_model(model, model).status(), Code::kInvalid, "another file");
  refused(export_model(model, folder.path()).status(), Code::kIo, "folder");
  refused(export_model(model, folder.path() + "/no/model.pt").status(), Code::kIo, "/no/model.pt");
  ASSERT_EQ(folder.entries(), std::vector<std::string>{"model"}) << "nothing is left behind";
  ASSERT_TRUE(export_model(model, script).ok());
  refused(export_model(script, folder.path() + "/other").status(), Code::kInvalid, "--save");
  refused(Predictor::load(folder.path() + "/none").status(), Code::kIo, "none");
  refused(Predictor::load(model).status(), Code::kInvalid, "ringfold export");
  refused(Predictor::load(script, "00ff").status(), Code::kInvalid, "00ff");
  const std::string bytes = test::read_file(script);
  refused(Predictor::load(folder.write("half.pt", bytes.substr(0, bytes.size() / 2), 0600)).status(), Code::kInvalid,
          "no TorchScript");
}

}  // namespace
}  // namespace ringfold::train
