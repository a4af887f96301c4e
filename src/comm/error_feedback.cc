#include "ringfold/error_feedback.h"

#include <fmt/format.h>

#include <cstring>

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
  return {Code::kInvalid,
          fmt::format("error feedback of \"{}\" has {} elements, not {}: give each tensor a name of "
                      "its own, or reset() it",
                      name, known, given)};
}

}  // namespace

std::vector<std::string> ErrorFeedback::names() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  return names;
}

std::vector<float> ErrorFeedback::get(std::string_view name) const {
  const std::lock_guard lock(mutex_);
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? std::vector<float>() : *it->second;
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
  for (const auto& [name, tensor] : tensors_) {
    append_number(&out, name.size());
    append_number(&out, tensor->size());
    out += name;
    out.append(reinterpret_cast<const char*>(tensor->data()), tensor->size() * sizeof(float));
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
    auto tensor = std::make_shared<std::vector<float>>(sizes[1]);
    if (sizes[1] > 0) std::memcpy(tensor->data(), saved.data() + sizes[0], sizes[1] * sizeof(float));
    tensors[std::string(saved.substr(0, sizes[0]))] = std::move(tensor);
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
    if (it != tensors_.end() && it->second->size() != tensor->size()) {
      return other_size(name, it->second->size(), tensor->size());
    }
  }
  for (const auto& [name, tensor] : *tensors) {
    Tensor& mine = tensors_[name];
    if (mine == nullptr) mine = std::make_shared<std::vector<float>>(tensor->size());
    for (size_t i = 0; i < tensor->size(); ++i) (*mine)[i] += (*tensor)[i];
  }
  return {};
}

Result<std::shared_ptr<float>> ErrorFeedback::state(std::string_view name, size_t elems) {
  const std::lock_guard lock(mutex_);
  auto it = tensors_.find(name);
  if (it == tensors_.end()) it = tensors_.emplace(name, std::make_shared<std::vector<float>>(elems)).first;
  if (it->second->size() != elems) return other_size(name, it->second->size(), elems);
  return std::shared_ptr<float>(it->second, it->second->data());
}

}  // namespace ringfold
