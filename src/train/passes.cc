#include "train/passes.h"

#include <fmt/format.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/types.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "sync/replica.h"

namespace ringfold::train {
namespace {

constexpr size_t kTestBatch = 500, kTestBatchOfText = 32;

class ReadyHook : public torch::autograd::FunctionPostHook {
 public:
  explicit ReadyHook(std::function<void()> ready) : ready_(std::move(ready)) {}
  torch::autograd::variable_list operator()(const torch::autograd::variable_list& outputs,
                                            const torch::autograd::variable_list&) override {
    ready_();
    return outputs;
  }

 private:
  std::function<void()> ready_;
};

std::span<const std::byte> bytes_of(const torch::Tensor& p) {
  return std::as_bytes(std::span(p.data_ptr<float>(), static_cast<size_t>(p.numel())));
}

}  // namespace

Passes::Passes(std::shared_ptr<Model> model, const Dataset& data, std::optional<c10::Device> device)
    : model_(std::move(model)), data_(data), device_(device) {
  if (device_) model_->to(*device_);  // before anything knows its parameters
  parameters_ = model_->parameters();
  for (const auto& named : model_->named_parameters()) {
    const auto& p = named.value();
    const auto elems = static_cast<size_t>(p.numel()), rows = p.dim() < 2 ? 1 : static_cast<size_t>(p.size(0));
    shapes_.push_back({.name = named.key(), .rows = rows, .cols = elems / rows, .matrix = p.dim() >= 2});
  }
  for (size_t i = 0; i < parameters_.size(); ++i) {
    accumulators_.push_back(torch::autograd::impl::grad_accumulator(parameters_[i]));
    accumulators_.back()->add_post_hook(std::make_unique<ReadyHook>([this, i] { complete(i); }));
  }
}

Passes::~Passes() {
  for (auto& p : parameters_) p.mutable_grad().reset();  // the gradients are the strategy's memory
}

size_t Passes::parameters_of_model() const {
  size_t all = 0;
  for (const auto& form : model_->forms()) all += form.elems();
  return all;
}

Holding Passes::holding() const {
  Holding holding;
  size_t own = 0, all = 0;
  for (const auto& form : model_->forms()) {
    const size_t cut = form.split >= 0 && model_->group ? static_cast<size_t>(model_->group->size()) : 1;
    const size_t elems = form.elems() / cut;
    if (model_->layers()[form.layer]) {
      holding.ranges.push_back({.own = own, .model = all, .elems = elems});
      own += elems;
    }
    all += elems;
  }
  if (model_->group) holding.part = fmt::format(", part {} of {}", model_->group->rank() + 1, model_->group->size());
  holding.place = holding.part;
  if (model_->pipeline()) {
    holding.place += ", layers";
    for (size_t i = 0; i < model_->layers().size(); ++i)
      if (model_->layers()[i]) holding.place += " " + std::to_string(i);
  }
  return holding;
}

void Passes::write_to(sync::Strategy& strategy) const {
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const auto memory = strategy.parameter(i);
    const auto here = parameters_[i].detach().cpu();
    std::copy_n(here.data_ptr<float>(), memory.size(), memory.data());
  }
}

void Passes::bind(sync::Strategy& strategy) {
  torch::NoGradGuard no_grad;
  strategy_ = &strategy;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    auto& p = parameters_[i];
    if (device_) {
      float* const made = strategy.device_gradient(i);
      p.mutable_grad() = made != nullptr ? torch::from_blob(made, p.sizes(), p.options().requires_grad(false))
                                         : torch::zeros_like(p.data());
      continue;
    }
    p.set_data(torch::from_blob(strategy.parameter(i).data(), p.sizes(), p.options().requires_grad(false)));
    // A defined gradient is added to in place, so backward writes straight into the strategy's memory.
    p.mutable_grad() = torch::from_blob(strategy.gradient(i).data(), p.sizes(), p.options().requires_grad(false));
  }
}

std::shared_ptr<sync::DeviceGradients> Passes::device_gradients() const {
  return device_ ? gradients_on(*device_) : nullptr;
}

// The gradient of parameter p is: the strategy gets it, where it was not made in its memory.
void Passes::complete(size_t p) {
  if (device_ && strategy_->device_gradient(p) == nullptr) {
    torch::NoGradGuard no_grad;
    auto& made = parameters_[p].mutable_grad();
    torch::from_blob(strategy_->gradient(p).data(), made.sizes(), torch::kFloat).copy_(made);
    made.zero_();
  }
  if (telling_) strategy_->ready(p);
}

// What the strategy has come to, onto the device.
void Passes::load_parameters() const {
  if (!device_) return;
  torch::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    auto p = parameters_[i].detach();
    p.copy_(torch::from_blob(strategy_->parameter(i).data(), p.sizes(), torch::kFloat));
  }
}

Status Passes::share_in_group() {
  if (!model_->group) return {};
  Group group;
  for (const auto& p : model_->all_parameters()) {
    if (p.split >= 0) continue;
    const auto elems = static_cast<size_t>(p.local.numel());
    group.add(model_->group->comm().broadcast(p.local.data_ptr(), p.local.data_ptr(), elems, DataType::kF32, 0));
  }
  return group.wait();
}

size_t Passes::test_batch() const { return data_.test.is_text() ? kTestBatchOfText : kTestBatch; }

void Passes::make_room(size_t samples) { batch_ = Batch(data_.train, std::max(test_batch(), samples)); }

Result<double> Passes::learn(std::span<const uint32_t> samples, double divisor) {
  load_parameters();
  batch_.fill(data_.train, samples);
  const auto here = [&](torch::Tensor part) { return device_ ? part.to(*device_) : part; };
  auto loss = loss_sum(model_->forward(here(batch_.inputs())), here(batch_.targets()));
  (loss / divisor).backward();
  return loss.item<double>();
}

Status Passes::rehearse(size_t samples) {
  std::vector<uint32_t> numbers(std::min(samples, data_.train.size()));
  std::iota(numbers.begin(), numbers.end(), 0U);
  make_room(numbers.size());
  telling_ = false;
  const auto loss = learn(numbers, 1);
  telling_ = true;
  return loss.status();
}

Result<Passes::Score> Passes::test(sync::Part part) {
  torch::NoGradGuard no_grad;
  load_parameters();
  const auto here = [&](torch::Tensor part) { return device_ ? part.to(*device_) : part; };
  Score score;
  std::vector<uint32_t> samples;
  for (size_t begin = part.begin; begin < part.end; begin += test_batch()) {
    samples.resize(std::min(test_batch(), part.end - begin));
    std::iota(samples.begin(), samples.end(), static_cast<uint32_t>(begin));
    batch_.fill(data_.test, samples);
    const auto logits = model_->forward(here(batch_.inputs()));
    const auto targets = here(batch_.targets());
    score.right += right_answers(logits, targets);
    score.loss += loss_sum(logits, targets).item<double>();
  }
  return score;
}

uint64_t Passes::hash() const {
  sync::ReplicaHash hash;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    hash.add(device_ ? std::as_bytes(strategy_->parameter(i)) : bytes_of(parameters_[i]));
  }
  return hash.value();
}

uint64_t Passes::shared_hash() const {
  sync::ReplicaHash hash;
  for (const auto& p : model_->all_parameters()) {
    if (p.split < 0) hash.add(bytes_of(p.local));
  }
  return hash.value();
}

void Passes::copy_parameters(std::vector<float>& out) const {
  load_parameters();
  out.clear();
  for (const auto& whole : whole_parameters(*model_)) {
    const auto p = whole.contiguous();
    out.insert(out.end(), p.data_ptr<float>(), p.data_ptr<float>() + p.numel());
  }
}

Status Passes::save(const std::string& path, About about, bool writes) const {
  load_parameters();
  const auto parameters = whole_parameters(*model_);
  if (!writes) return {};
  about.parameters = parameters_of_model();
  return save_model(path, *model_, parameters, about);
}

}  // namespace ringfold::train
