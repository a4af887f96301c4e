#include "sync/state.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace ringfold::sync {
namespace {

static_assert(std::endian::native == std::endian::little, "the form in files is the one in memory");

constexpr std::string_view kMagic = "RFSTATE1";

void put(std::string& out, uint64_t value) { out.append(reinterpret_cast<const char*>(&value), sizeof value); }
void put(std::string& out, std::string_view text) {
  put(out, text.size());
  out.append(text);
}

class Reader {
 public:
  explicit Reader(std::string_view bytes) : left_(bytes) {}
  bool number(uint64_t& value) {
    if (left_.size() < sizeof value) return false;
    std::memcpy(&value, left_.data(), sizeof value);
    left_.remove_prefix(sizeof value);
    return true;
  }
  bool text(std::string& value) {
    uint64_t size = 0;
    if (!number(size) || size > left_.size()) return false;
    value = left_.substr(0, size);
    left_.remove_prefix(size);
    return true;
  }
  bool floats(std::vector<float>& values) {
    uint64_t size = 0;
    if (!number(size) || size > left_.size() / sizeof(float)) return false;
    values.resize(size);
    if (size > 0) std::memcpy(values.data(), left_.data(), size * sizeof(float));
    left_.remove_prefix(size * sizeof(float));
    return true;
  }
  bool skip(std::string_view text) {
    if (!left_.starts_with(text)) return false;
    left_.remove_prefix(text.size());
    return true;
  }
  bool done() const { return left_.empty(); }

 private:
  std::string_view left_;
};

}  // namespace

void State::add(const std::string& name, size_t begin, std::span<const float> values) {
  auto& pieces = pieces_[name];
  if (!values.empty()) pieces[begin].assign(values.begin(), values.end());
}

Status State::get(const std::string& name, size_t begin, std::span<float> values) const {
  if (values.empty()) return {};
  const auto found = pieces_.find(name);
  if (found == pieces_.end()) return Status(Code::kInvalid, "there is no vector '" + name + "'");
  size_t at = begin;
  const size_t end = begin + values.size();
  for (const auto& [from, piece] : found->second) {
    if (from > at || at == end) break;
    const size_t stop = std::min(end, from + piece.size());
    if (stop <= at) continue;
    std::copy_n(piece.begin() + static_cast<std::ptrdiff_t>(at - from), stop - at,
                values.begin() + static_cast<std::ptrdiff_t>(at - begin));
    at = stop;
  }
  if (at == end) return {};
  return Status(Code::kInvalid, "vector '" + name + "' lacks element " + std::to_string(at));
}

void State::for_each(
    const std::function<void(const std::string& name, size_t begin, std::span<const float> values)>& visit) const {
  for (const auto& [name, pieces] : pieces_) {
    for (const auto& [begin, values] : pieces) visit(name, begin, values);
  }
}

void State::merge(State other) {
  for (auto& [name, pieces] : other.pieces_) {
    auto& mine = pieces_[name];
    for (auto& [begin, values] : pieces) {
      auto& piece = mine[begin];
      if (piece.size() < values.size()) piece = std::move(values);
    }
  }
  numbers.merge(other.numbers);
  blobs.merge(other.blobs);
}

std::string State::serialise() const {
  std::string out(kMagic);
  put(out, pieces_.size());
  for (const auto& [name, pieces] : pieces_) {
    put(out, name);
    put(out, pieces.size());
    for (const auto& [begin, values] : pieces) {
      put(out, begin);
      put(out, values.size());
      out.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    }
  }
  put(out, numbers.size());
  for (const auto& [name, value] : numbers) {
    put(out, name);
    put(out, value);
  }
  put(out, blobs.size());
  for (const auto& [name, value] : blobs) {
    put(out, name);
    put(out, value);
  }
  return out;
}

Result<State> State::parse(std::string_view bytes) {
  State state;
  Reader reader(bytes);
  const Status bad(Code::kInvalid, "these bytes are no saved state, or damaged");
  uint64_t vectors = 0, pieces = 0, begin = 0, count = 0, number = 0;
  std::string name, blob;
  if (!reader.skip(kMagic) || !reader.number(vectors)) return bad;
  for (; vectors > 0; --vectors) {
    if (!reader.text(name) || !reader.number(pieces)) return bad;
    auto& mine = state.pieces_[name];
    for (; pieces > 0; --pieces) {
      std::vector<float> values;
      if (!reader.number(begin) || !reader.floats(values) || begin > SIZE_MAX / 2) return bad;
      mine[begin] = std::move(values);
    }
  }
  if (!reader.number(count)) return bad;
  for (; count > 0; --count) {
    if (!reader.text(name) || !reader.number(number)) return bad;
    state.numbers[name] = number;
  }
  if (!reader.number(count)) return bad;
  for (; count > 0; --count) {
    if (!reader.text(name) || !reader.text(blob)) return bad;
    state.blobs[name] = blob;
  }
  if (!reader.done()) return bad;
  return state;
}

}  // namespace ringfold::sync
