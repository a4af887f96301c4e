// State: what a run has to remember to go on, as named pieces of named vectors, whoever holds them. A vector may be
// cut over ranks in any way; who loads finds what it needs, whatever the number of ranks was.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "ringfold/status.h"

namespace ringfold::sync {

class State {
 public:
  // Elements [begin, begin + values.size()) of the vector `name`.
  void add(const std::string& name, size_t begin, std::span<const float> values);
  // kInvalid, naming the vector: some of the elements are nowhere.
  Status get(const std::string& name, size_t begin, std::span<float> values) const;
  bool has(const std::string& name) const { return pieces_.contains(name); }
  // Every piece of every vector.
  void for_each(
      const std::function<void(const std::string& name, size_t begin, std::span<const float> values)>& visit) const;

  // Numbers and bytes that are not cut.
  std::map<std::string, uint64_t> numbers;
  std::map<std::string, std::string> blobs;

  // Everything that `other` holds, too. Equal names of numbers and blobs keep the value that is here.
  void merge(State other);

  // As bytes of a fixed little-endian form, and back; kInvalid: they are no such form.
  std::string serialise() const;
  static Result<State> parse(std::string_view bytes);

 private:
  std::map<std::string, std::map<size_t, std::vector<float>>> pieces_;  // by where they begin
};

}  // namespace ringfold::sync
