// A shared mapping of a part of a file; unmapped by its owner's end.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <utility>

namespace ringfold::base {

class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Mapping() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }
  // Not ok() when the system refuses; errno says why.
  static Mapping of(int fd, size_t offset, size_t bytes, bool writable) {
    Mapping mapping;
    void* memory = mmap(nullptr, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd,
                        static_cast<off_t>(offset));
    if (memory == MAP_FAILED) return mapping;
    mapping.data_ = static_cast<std::byte*>(memory);
    mapping.bytes_ = bytes;
    return mapping;
  }
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  bool ok() const { return data_ != nullptr; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace ringfold::base
