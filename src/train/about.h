// What is known of a model besides its parameters: what it is, what it was trained on and how, and what it reached.
// It is kept in every file that holds the model. Free of libtorch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "ringfold/status.h"

namespace ringfold::train {

// Which function a model is. The same spec and seed make the same initial parameters.
struct ModelSpec {
  std::string kind = "cnn";  // mlp, cnn: 28 x 28 pixels -> ten classes. transformer: bytes -> each one's next
  // Of a transformer.
  int64_t layers = 4;
  int64_t width = 128;    // values per byte between layers
  int64_t heads = 4;      // of attention, width / heads values each
  int64_t context = 128;  // bytes that it can look back on
  bool is_text() const { return kind == "transformer"; }
};
// kInvalid: an unknown kind, or sizes that do not divide, among them by the `tensor` ranks that share each layer.
Status check(const ModelSpec& spec, int tensor = 1);

struct About {
  ModelSpec model;
  size_t parameters = 0;
  std::string data;         // in words
  std::string data_digest;  // SHA-256 of the training samples
  size_t train_samples = 0, test_samples = 0;
  int ranks = 1, epochs = 0;
  size_t batch = 0;
  uint64_t seed = 0;
  std::string optimizer;
  double lr = 0;
  double test_loss = 0;      // nats per image or byte
  double test_accuracy = 0;  // share of images classified, or bytes predicted, rightly
};
std::string to_json(const About& about);
Result<About> about_from_json(const std::string& text);  // kInvalid when it is not such a record

// For people, in Markdown: what a file `name` with this model and this digest is, and how to use it.
std::string model_card(const About& about, const std::string& name, const std::string& file_digest);

// Of Fashion-MNIST's ten.
const char* class_name(int label);

// Nats, as losses are, in the units that language models are compared in.
double bits_per_byte(double nats);

}  // namespace ringfold::train
