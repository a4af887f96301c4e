// Reading and writing of the small records that ranks exchange outside the data path. Little endian, no padding. A
// Reader never reads outside its bytes: after the first malformed field ok() is false and every value is 0 or "".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

namespace ringfold::comm {

class Writer {
 public:
  template <typename T>
  Writer& number(T value) {
    static_assert(std::is_integral_v<T>);
    auto bits = static_cast<std::make_unsigned_t<T>>(value);
    for (size_t i = 0; i < sizeof(T); ++i) out_.push_back(static_cast<char>((uint64_t{bits} >> (8 * i)) & 0xff));
    return *this;
  }
  Writer& text(std::string_view value) {
    number(static_cast<uint32_t>(value.size()));
    return bytes(value);
  }
  Writer& bytes(std::string_view value) {
    out_ += value;
    return *this;
  }
  std::string take() { return std::move(out_); }

 private:
  std::string out_;
};

class Reader {
 public:
  explicit Reader(std::string_view in) : in_(in) {}
  template <typename T>
  T number() {
    static_assert(std::is_integral_v<T>);
    auto raw = bytes(sizeof(T));
    uint64_t value = 0;
    for (size_t i = 0; i < raw.size(); ++i) value |= uint64_t{static_cast<unsigned char>(raw[i])} << (8 * i);
    return static_cast<T>(value);
  }
  std::string_view text(size_t max = SIZE_MAX) {
    auto size = number<uint32_t>();
    if (size > max) ok_ = false;
    return bytes(size);
  }
  std::string_view bytes(size_t size) {
    if (!ok_ || size > in_.size()) {
      ok_ = false;
      return {};
    }
    auto result = in_.substr(0, size);
    in_.remove_prefix(size);
    return result;
  }
  std::string_view rest() { return bytes(in_.size()); }
  bool ok() const { return ok_; }
  bool done() const { return ok_ && in_.empty(); }  // everything was read, and nothing is left over

 private:
  std::string_view in_;
  bool ok_ = true;
};

}  // namespace ringfold::comm
