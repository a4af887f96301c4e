// Pre-normalised blocks, as in GPT-2: x += attention(norm(x)); x += mlp(norm(x)). Learned positions, no dropout (so
// that a run depends on the seed alone and N ranks follow one), no weights shared between embedding and output (so
// that both may lie on different stages).
//
// On a tensor group: the embedding is cut by byte values, attention by heads, the hidden values of the mlp and the
// logits by columns. Norms, positions and the biases that are added to sums are on all ranks.
#include "train/transformer.h"

#include <fmt/format.h>
#include <torch/types.h>

#include <cmath>
#include <limits>

namespace ringfold::train {
namespace {

constexpr double kEmbeddingBound = 0.035;  // uniform with a deviation of 0.02
constexpr double kNormEpsilon = 1e-5;

// Uniform with a variance of 1 / inputs: keeps the size of a normalised signal.
double linear_bound(int64_t inputs) { return std::sqrt(3.0 / static_cast<double>(inputs)); }

class Embedding : public Layer {
 public:
  Embedding(Builder& b, const ModelSpec& s)
      : group_(b.group()),
        bytes_(add("bytes", b.uniform({kByteValues, s.width}, kEmbeddingBound, 0), 0)),
        positions_(add("positions", b.uniform({s.context, s.width}, kEmbeddingBound))) {}
  std::vector<int64_t> gives() const override { return positions_.sizes().vec(); }

  torch::Tensor forward(const torch::Tensor& x) override {
    const auto positions = positions_.narrow(0, 0, x.size(1));
    if (!group_) return at::embedding(bytes_, x) + positions;
    // Each rank looks up the values that it has, and has zeros for the others.
    const auto row = x - group_->rank() * bytes_.size(0);
    const auto mine = row.ge(0).logical_and(row.lt(bytes_.size(0)));
    const auto found = at::embedding(bytes_, row.clamp(0, bytes_.size(0) - 1));
    return leave(found * mine.unsqueeze(-1).to(found.scalar_type()), group_) + positions;
  }
  std::string script() const override { return "return torch.embedding(self.bytes, x) + self.positions[:x.size(1)]"; }

 private:
  TensorGroup* group_;
  torch::Tensor bytes_, positions_;
};

class Block : public Layer {
 public:
  Block(Builder& b, const ModelSpec& s)
      : group_(b.group()),
        gives_({s.context, s.width}),
        head_width_(s.width / s.heads),
        norm1_weight_(add("norm1_weight", b.constant({s.width}, 1))),
        norm1_bias_(add("norm1_bias", b.constant({s.width}, 0))),
        // Query, key and value of one head after those of another, so that cutting rows cuts between heads.
        qkv_weight_(add("qkv_weight", b.uniform({3 * s.width, s.width}, linear_bound(s.width), 0), 0)),
        qkv_bias_(add("qkv_bias", b.constant({3 * s.width}, 0, 0), 0)),
        mix_weight_(add("mix_weight", b.uniform({s.width, s.width}, residual_bound(s, s.width), 1), 1)),
        mix_bias_(add("mix_bias", b.constant({s.width}, 0))),
        norm2_weight_(add("norm2_weight", b.constant({s.width}, 1))),
        norm2_bias_(add("norm2_bias", b.constant({s.width}, 0))),
        up_weight_(add("up_weight", b.uniform({4 * s.width, s.width}, linear_bound(s.width), 0), 0)),
        up_bias_(add("up_bias", b.constant({4 * s.width}, 0, 0), 0)),
        down_weight_(add("down_weight", b.uniform({s.width, 4 * s.width}, residual_bound(s, 4 * s.width), 1), 1)),
        down_bias_(add("down_bias", b.constant({s.width}, 0))) {}
  std::vector<int64_t> gives() const override { return gives_; }

  torch::Tensor forward(const torch::Tensor& x) override {
    const int64_t width = x.size(2);
    auto h = enter(at::layer_norm(x, {width}, norm1_weight_, norm1_bias_, kNormEpsilon), group_);
    const auto y =
        x + leave(at::linear(attention(at::linear(h, qkv_weight_, qkv_bias_)), mix_weight_), group_) + mix_bias_;
    h = enter(at::layer_norm(y, {width}, norm2_weight_, norm2_bias_, kNormEpsilon), group_);
    h = at::gelu(at::linear(h, up_weight_, up_bias_));
    return y + leave(at::linear(h, down_weight_), group_) + down_bias_;
  }

  std::string script() const override {
    return fmt::format(R"(h = torch.layer_norm(x, [x.size(2)], self.norm1_weight, self.norm1_bias, {0})
qkv = torch.linear(h, self.qkv_weight, self.qkv_bias).view([x.size(0), x.size(1), -1, 3, {1}]).permute([3, 0, 2, 1, 4])
scores = torch.matmul(qkv[0] * {2}, qkv[1].transpose(-2, -1))
future = torch.triu(torch.ones_like(scores[0, 0]), 1) > 0
scores = torch.softmax(torch.masked_fill(scores, future, float('-inf')), -1)
h = torch.matmul(scores, qkv[2]).transpose(1, 2).flatten(2)
x = x + torch.linear(h, self.mix_weight) + self.mix_bias
h = torch.layer_norm(x, [x.size(2)], self.norm2_weight, self.norm2_bias, {0})
h = torch.gelu(torch.linear(h, self.up_weight, self.up_bias))
return x + torch.linear(h, self.down_weight) + self.down_bias)",
                       kNormEpsilon, head_width_, scale());
  }

 private:
  // What is added to the sum that runs through all blocks starts smaller the more blocks there are.
  static double residual_bound(const ModelSpec& s, int64_t inputs) {
    return linear_bound(inputs) / std::sqrt(2.0 * static_cast<double>(s.layers));
  }
  double scale() const { return 1 / std::sqrt(static_cast<double>(head_width_)); }

  // Of this rank's heads: [n, t, heads * 3 * head_width] -> [n, t, heads * head_width].
  torch::Tensor attention(const torch::Tensor& qkv) const {
    const int64_t n = qkv.size(0), t = qkv.size(1);
    const auto parts = qkv.view({n, t, -1, 3, head_width_}).permute({3, 0, 2, 1, 4});
    const auto scores = at::matmul(parts[0] * scale(), parts[1].transpose(-2, -1));
    const auto future = at::ones({t, t}, scores.options().dtype(at::kBool)).triu_(1);
    const auto weights = at::softmax(scores.masked_fill(future, -std::numeric_limits<float>::infinity()), -1);
    return at::matmul(weights, parts[2]).transpose(1, 2).flatten(2);
  }

  TensorGroup* group_;
  std::vector<int64_t> gives_;
  int64_t head_width_;
  torch::Tensor norm1_weight_, norm1_bias_, qkv_weight_, qkv_bias_, mix_weight_, mix_bias_;
  torch::Tensor norm2_weight_, norm2_bias_, up_weight_, up_bias_, down_weight_, down_bias_;
};

class Head : public Layer {
 public:
  Head(Builder& b, const ModelSpec& s)
      : group_(b.group()),
        gives_({s.context, kByteValues}),
        norm_weight_(add("norm_weight", b.constant({s.width}, 1))),
        norm_bias_(add("norm_bias", b.constant({s.width}, 0))),
        out_weight_(add("out_weight", b.uniform({kByteValues, s.width}, kEmbeddingBound, 0), 0)) {}
  std::vector<int64_t> gives() const override { return gives_; }

  torch::Tensor forward(const torch::Tensor& x) override {
    const auto h = at::layer_norm(x, {x.size(2)}, norm_weight_, norm_bias_, kNormEpsilon);
    return collect(at::linear(enter(h, group_), out_weight_), group_);
  }
  std::string script() const override {
    return fmt::format(
        "return torch.linear(torch.layer_norm(x, [x.size(2)], self.norm_weight, self.norm_bias, {}), "
        "self.out_weight)",
        kNormEpsilon);
  }

 private:
  TensorGroup* group_;
  std::vector<int64_t> gives_;
  torch::Tensor norm_weight_, norm_bias_, out_weight_;
};

}  // namespace

void append_transformer(Model& model, Builder& builder, const ModelSpec& spec) {
  model.append<Embedding>(builder, spec);
  for (int64_t i = 0; i < spec.layers; ++i) model.append<Block>(builder, spec);
  model.append<Head>(builder, spec);
}

}  // namespace ringfold::train
