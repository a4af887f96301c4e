#include "ringfold/error_feedback.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/log.h"

namespace ringfold {
namespace {

// "RFEF1", then for each tensor: bytes of its name, elements, name, elements as f32; all integers of 8 bytes.
constexpr std::string_view kMagic = "RFEF1";

void append_number(std::string* out, uint64_t value) {
  char bytes[8];
  std::memcpy(bytes, &value, 8);
  out->append(bytes, 8);
}

Status other_size(std::string_view name, size_t known, size_t given) {
  return {Code::kInvalid, fmt::format("error feedback of \"{}\" has {} elements, not {}: give each tensor a name of "
                                      "its own, or reset() it",
                                      name, known, given)};
}

}  // namespace

std::vector<float>& ErrorFeedback::Tensor::fetched() {
  if (elsewhere == nullptr) return *values;
  values = std::make_shared<std::vector<float>>(elems);
  if (const Status s = elsewhere->fetch(values->data()); !s.ok()) {
    log::info("error feedback on a device is lost, and starts again from zero: {}", s.message());
    std::fill(values->begin(), values->end(), 0.0f);
  }
  elsewhere = nullptr;
  return *values;
}

std::vector<std::string> ErrorFeedback::names() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  return names;
}

std::vector<float> ErrorFeedback::get(std::string_view name) const {
  const std::lock_guard lock(mutex_);
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? std::vector<float>() : it->second.fetched();
}

void ErrorFeedback::reset(std::string_view name) {
  const std::lock_guard lock(mutex_);
  if (const auto it = tensors_.find(name); it != tensors_.end()) tensors_.erase(it);
}

void ErrorFeedback::reset() {
  const std::lock_guard lock(mutex_);
  tensors_.clear();
}

std::string ErrorFeedback::save() const {
  const std::lock_guard lock(mutex_);
  std::string out(kMagic);
  for (auto& [name, tensor] : tensors_) {
    append_number(&out, name.size());
    append_number(&out, tensor.elems);
    out += name;
    out.append(reinterpret_cast<const char*>(tensor.fetched().data()), tensor.elems * sizeof(float));
  }
  return out;
}

Result<ErrorFeedback::Tensors> ErrorFeedback::parse(std::string_view saved) {
  const Status damaged(Code::kInvalid, "this is no saved error feedback, or not all of it");
  if (!saved.starts_with(kMagic)) return damaged;
  saved.remove_prefix(kMagic.size());
  Tensors tensors;
  while (!saved.empty()) {
    uint64_t sizes[2];  // of the name, in elements
    if (saved.size() < sizeof sizes) return damaged;
    std::memcpy(sizes, saved.data(), sizeof sizes);
    saved.remove_prefix(sizeof sizes);
    if (sizes[0] > saved.size() || sizes[1] > (saved.size() - sizes[0]) / sizeof(float)) return damaged;
    Tensor tensor(sizes[1]);
    if (sizes[1] > 0) std::memcpy(tensor.values->data(), saved.data() + sizes[0], sizes[1] * sizeof(float));
    tensors.insert_or_assign(std::string(saved.substr(0, sizes[0])), std::move(tensor));
    saved.remove_prefix(sizes[0] + sizes[1] * sizeof(float));
  }
  return tensors;
}

Status ErrorFeedback::load(std::string_view saved) {
  auto tensors = parse(saved);
  if (!tensors.ok()) return tensors.status();
  const std::lock_guard lock(mutex_);
  tensors_ = *std::move(tensors);
  return {};
}

Status ErrorFeedback::add(std::string_view saved) {
  auto tensors = parse(saved);
  if (!tensors.ok()) return tensors.status();
  const std::lock_guard lock(mutex_);
  for (const auto& [name, tensor] : *tensors) {
    const auto it = tensors_.find(name);
    if (it != tensors_.end() && it->second.elems != tensor.elems) {
      return other_size(name, it->second.elems, tensor.elems);
    }
  }
  for (const auto& [name, tensor] : *tensors) {
    std::vector<float>& mine = tensors_.try_emplace(name, tensor.elems).first->second.fetched();
    for (size_t i = 0; i < tensor.elems; ++i) mine[i] += (*tensor.values)[i];
  }
  return {};
}

Result<std::shared_ptr<float>> ErrorFeedback::state(std::string_view name, size_t elems) {
  const std::lock_guard lock(mutex_);
  Tensor& tensor = tensors_.try_emplace(std::string(name), elems).first->second;
  if (tensor.elems != elems) return other_size(name, tensor.elems, elems);
  std::vector<float>& values = tensor.fetched();
  return std::shared_ptr<float>(tensor.values, values.data());
}

Result<std::shared_ptr<ErrorFeedback::Elsewhere>> ErrorFeedback::state_at(const void* place, std::string_view name,
                                                                          size_t elems, const Make& make) {
  const std::lock_guard lock(mutex_);
  const auto found = tensors_.find(name);
  if (found != tensors_.end()) {
    Tensor& tensor = found->second;
    if (tensor.elems != elems) return other_size(name, tensor.elems, elems);
    if (tensor.elsewhere != nullptr && tensor.elsewhere->place() == place) return tensor.elsewhere;
  }
  auto made =
      make(found != tensors_.end() ? std::span<const float>(found->second.fetched()) : std::span<const float>());
  if (!made.ok()) return made.status();
  Tensor& tensor = tensors_.try_emplace(std::string(name), elems).first->second;
  tensor.values = nullptr;
  tensor.elsewhere = *made;
  return *made;
}

}  // namespace ringfold
