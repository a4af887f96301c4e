// SHA-256, for saying which data and which model.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "ringfold/status.h"

namespace ringfold::train {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void add(std::span<const std::byte> bytes);
  std::string hex();  // of all that was added; once, at the end

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// As sha256sum prints it. kIo when the file cannot be read.
Result<std::string> file_digest(const std::string& path);

}  // namespace ringfold::train
